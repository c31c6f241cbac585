// SPDX-License-Identifier: MIT
// A world for the real scheduler: an executor made of arithmetic, and a front that knows every right answer.
//
// KV of a position is a hash of the tenant's salt and every token up to it; a sampled token is a function of
// the KV it attends to. So a wrong block, a stale block, a missing delta, another tenant's block, or a token
// of the past shows as a wrong value, without looking inside the scheduler. The executor runs in stream order
// but lets go of a step's blocks and slots only when it retires (I6).
#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/check.h"
#include "sched/scheduler.h"

namespace tokenspeed::world {

struct Wrong : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* what) {
    if (!holds) {
        throw Wrong(what);
    }
}

struct Request {
    std::vector<std::int32_t> prompt;
    Ask ask;
    std::string salt;
    std::int32_t priority = 0;
    Terms terms{};
};

inline constexpr std::int32_t kVocab = 5;

inline std::uint64_t kv_step(std::uint64_t before, std::int32_t token) {
    return digest_of(before + 1, std::span<const std::int32_t>(&token, 1));
}
inline std::uint64_t kv_start(const std::string& salt) { return 1 + std::hash<std::string>{}(salt); }
inline std::int32_t sample(std::uint64_t kv) { return static_cast<std::int32_t>((kv >> 17U) % kVocab); }

// Memory for a plan or an outcome.
template <class Buffer>
class Owned {
 public:
    Buffer buffer;
    explicit Owned(const Options& options) {
        buffer.visit([this](auto& list, std::size_t n) { back(list, n); }, options);
    }

 private:
    template <class T>
    void back(Bounded<T>& list, std::size_t n) {
        memory_.push_back(std::make_unique<std::uint64_t[]>(n));
        list = Bounded<T>(std::span<T>(reinterpret_cast<T*>(memory_.back().get()), n));
    }
    std::vector<std::unique_ptr<std::uint64_t[]>> memory_;
};

class World {
 public:
    World(const Options& options, std::vector<Request> requests)
        : scheduler(options),
          requests_(std::move(requests)),
          emitted_(requests_.size()),
          state_(requests_.size(), State::unborn),
          slots_(static_cast<std::size_t>(options.slots_max)),
          outcome_(options) {
        for (const std::int32_t blocks : {options.blocks_total, options.host_blocks, options.disk_blocks}) {
            tiers_.emplace_back(static_cast<std::size_t>(blocks * options.block_tokens), 0);
        }
        for (std::int32_t i = 0; i <= options.steps_in_flight_max(); ++i) {
            plans_.push_back(std::make_unique<Owned<PlanBuffer>>(options));
        }
    }

    enum class State : std::uint8_t { unborn, alive, cancelling, finished };

    SubmitStatus submit(std::size_t i) {
        const Request& request = requests_[i];
        const auto* const salt = reinterpret_cast<const std::uint8_t*>(request.salt.data());
        const SubmitStatus status = scheduler.submit({.id = RequestId{i},
                                                      .prompt = request.prompt,
                                                      .ask = request.ask,
                                                      .salt = {salt, request.salt.size()},
                                                      .terms = request.terms,
                                                      .priority = request.priority,
                                                      .now_us = now_us});
        if (status == SubmitStatus::accepted) {
            require(state_[i] == State::unborn, "a request is accepted twice");
            state_[i] = State::alive;
        }
        return status;
    }

    bool cancel(std::size_t i) {
        const bool was_alive = scheduler.cancel(RequestId{i});
        require(was_alive == (state_[i] == State::alive), "cancel disagrees with the front about who lives");
        if (was_alive) {
            state_[i] = State::cancelling;
        }
        return was_alive;
    }

    // Plan and launch; false where nothing can run.
    bool plan() {
        PlanBuffer& plan = plans_[plan_next_]->buffer;
        const bool planned = scheduler.plan(plan, now_us);
        if (scheduler.stats().counters.scrubs != scrubs_) {
            scrubs_ = scheduler.stats().counters.scrubs;
            quarantined_.clear();
        }
        if (!planned) {
            return false;
        }
        plan_next_ = (plan_next_ + 1) % plans_.size();
        launch(plan);
        return true;
    }

    // Retire the oldest step; with `failed`, its first sampled row fails.
    void commit(bool failed = false) {
        require(!flights_.empty(), "a commit without a step");
        Flight flight = std::move(flights_.front());
        flights_.pop_front();
        if (failed && !flight.tokens.empty()) {
            flight.tokens[0] = -7;
        }
        const CommitStatus status = scheduler.commit(flight.step, flight.tokens, outcome_.buffer);
        require(status == CommitStatus::committed, "a result in order is not committed");
        last_ = flight.tokens;
        step_last_ = flight.step;
        hear(failed);
    }

    // A duplicate of the last result, a result of a step that never was, and one out of order: all harmless.
    void commit_late() {
        const std::uint64_t before = scheduler.digest();
        for (const StepId step : {step_last_, StepId{0}, StepId{1U << 20U}}) {
            require(scheduler.commit(step, last_, outcome_.buffer) == CommitStatus::late,
                    "a late result is taken");
            require(outcome_.buffer.request_ids.size() == 0, "a late result has an outcome");
        }
        if (flights_.size() == 2) {
            const CommitStatus status =
                scheduler.commit(flights_[1].step, flights_[1].tokens, outcome_.buffer);
            require(status == CommitStatus::late, "a result is taken before an older one");
        }
        require(scheduler.digest() == before, "a late result changes the state");
    }

    // A copy comes to its end: the target holds what the source holds, or anything at all.
    void land(std::size_t i, CopyResult result) {
        const Copy copy = copies_.at(i);
        copies_.erase(copies_.begin() + static_cast<std::ptrdiff_t>(i));
        for (std::int32_t token = 0; token < scheduler.options().block_tokens; ++token) {
            const std::uint64_t value = held(copy.from_tier, copy.from, token);
            require(value == copy.content[static_cast<std::size_t>(token)], "I11: the source of a copy has changed");
            require(held(copy.to_tier, copy.to, token) == kGarbage, "I11: the target of a copy was written");
            if (result == CopyResult::done) {
                held(copy.to_tier, copy.to, token) = value;
            }
        }
        if (result == CopyResult::corrupt && copy.from_tier == 0) {
            result = CopyResult::failed;
        }
        report(copy.id, result);
    }

    // Reports that were heard before, and of copies that never were.
    void report_again() {
        for (const std::uint64_t id : std::vector(reported_)) {
            report(id, CopyResult::done);
        }
        report(0, CopyResult::done);
        report(std::uint64_t{1} << 40U, CopyResult::corrupt);
    }

    // The memory of a block is found not to hold what was stored.
    void find_corrupt(std::int32_t block) {
        const std::int32_t before = scheduler.stats().blocks_quarantined;
        scheduler.corrupt(std::span<const std::int32_t>(&block, 1), now_us);
        if (scheduler.stats().blocks_quarantined > before) {
            quarantined_.insert(block);
        }
    }

    void drain() {
        scheduler.drain(outcome_.buffer);
        hear(false);
    }

    // Let everything end, and see that everything is given back.
    void run_out() {
        for (int turn = 0; !scheduler.idle(); ++turn) {
            require(turn < 2000, "the scheduler does not come to an end");
            const bool planned = plan();
            require(planned || !flights_.empty() || !copies_.empty(),
                    "requests wait, nothing runs, nothing is in flight");
            if (!copies_.empty() && (turn % 3 == 0 || (!planned && flights_.empty()))) {
                land(0, CopyResult::done);
                continue;
            }
            if (!planned ||
                static_cast<std::int32_t>(flights_.size()) == scheduler.options().steps_in_flight_max()) {
                commit();
            }
            scheduler.check();
        }
        drain();
        for (int turn = 0; plan() || !copies_.empty() || !flights_.empty(); ++turn) {
            require(turn < 2000, "the tiers do not come to rest");
            while (!flights_.empty()) {
                commit();
            }
            while (!copies_.empty()) {
                land(copies_.size() - 1, CopyResult::done);
            }
            scheduler.check();
        }
        for (const State state : state_) {
            require(state == State::unborn || state == State::finished, "a request never finishes");
        }
        const Stats stats = scheduler.stats();
        require(stats.transfers == 0, "a transfer never lands");
        require(stats.blocks_free + stats.blocks_evictable + stats.blocks_quarantined == stats.blocks_total,
                "blocks are lost");
        require(stats.slots_free == scheduler.options().slots_max, "slots are lost");
        (void)scheduler.flush_prefix();
        const Stats flushed = scheduler.stats();
        require(flushed.blocks_free + flushed.blocks_quarantined == stats.blocks_total, "a flush leaves blocks behind");
        for (const TierStats& tier : {flushed.host, flushed.disk}) {
            require(tier.blocks_free + tier.blocks_quarantined == tier.blocks_total, "a flush leaves blocks below");
        }
    }

    [[nodiscard]] State state(std::size_t i) const { return state_[i]; }
    [[nodiscard]] std::size_t copies() const { return copies_.size(); }
    [[nodiscard]] std::size_t flights() const { return flights_.size(); }
    [[nodiscard]] std::size_t requests() const { return requests_.size(); }
    [[nodiscard]] const std::vector<std::int32_t>& emitted(std::size_t i) const { return emitted_[i]; }
    [[nodiscard]] const PlanBuffer& plan_last() const {
        return plans_[(plan_next_ + plans_.size() - 1) % plans_.size()]->buffer;
    }

    Scheduler scheduler;
    std::uint64_t now_us = 0;

 private:
    struct Slot {
        std::size_t request = 0;
        std::map<std::int32_t, std::int32_t> table;
        std::vector<std::int32_t>
            tokens;  // as the device knows them: sampled ones are there before control sees them
    };
    struct Flight {
        StepId step;
        std::vector<std::int32_t> tokens;
        std::map<std::int32_t, std::size_t> writers;  // block -> request
        std::map<std::int32_t, std::size_t> rows;     // slot -> request
    };

    struct Copy {
        std::uint64_t id;
        std::uint8_t from_tier, to_tier;
        std::int32_t from, to;
        std::vector<std::uint64_t> content;
    };
    static constexpr std::uint64_t kGarbage = 0xbad;

    std::uint64_t& held(std::uint8_t tier, std::int32_t block, std::int32_t token) {
        return tiers_[tier].at(static_cast<std::size_t>(block * scheduler.options().block_tokens + token));
    }

    void report(std::uint64_t id, CopyResult result) {
        const auto value = static_cast<std::uint8_t>(result);
        scheduler.transferred(std::span<const std::uint64_t>(&id, 1), std::span<const std::uint8_t>(&value, 1), now_us);
        if (reported_.size() == 8) {
            reported_.erase(reported_.begin());
        }
        reported_.push_back(id);
    }

    // Copies run beside the step: what they read stays, what they write is anything until they are reported.
    void start_copies(const PlanBuffer& plan) {
        for (std::size_t i = 0; i < plan.copy_ids.size(); ++i) {
            Copy copy{plan.copy_ids.values()[i],
                      plan.copy_from_tiers.values()[i],
                      plan.copy_to_tiers.values()[i],
                      plan.copy_from.values()[i],
                      plan.copy_to.values()[i],
                      {}};
            for (std::int32_t token = 0; token < scheduler.options().block_tokens; ++token) {
                copy.content.push_back(held(copy.from_tier, copy.from, token));
                require(copy.content.back() != kGarbage, "a copy reads what no copy has brought yet");
                held(copy.to_tier, copy.to, token) = kGarbage;
            }
            copies_.push_back(std::move(copy));
        }
    }

    std::uint64_t& kv(Slot& slot, std::int32_t position) {
        const std::int32_t block_tokens = scheduler.options().block_tokens;
        const auto entry = slot.table.find(position / block_tokens);
        require(entry != slot.table.end(), "a position has no table entry");
        return tiers_[0][static_cast<std::size_t>(entry->second * block_tokens + position % block_tokens)];
    }

    void launch(const PlanBuffer& plan) {
        for (std::size_t i = 0; i < plan.bound_slots.size(); ++i) {
            const std::int32_t slot = plan.bound_slots.values()[i];
            const std::uint64_t request = plan.bound_request_ids.values()[i];
            for (const Flight& flight : flights_) {
                require(!flight.rows.contains(slot),
                        "I6: a slot is bound while a step with a row of it is in flight");
            }
            const auto known = scheduler.tokens(RequestId{request});
            slots_[static_cast<std::size_t>(slot)] = {request, {}, {known.begin(), known.end()}};
        }
        for (std::size_t i = 0; i < plan.table_slots.size(); ++i) {
            Slot& slot = slots_[static_cast<std::size_t>(plan.table_slots.values()[i])];
            slot.table[plan.table_indexes.values()[i]] = plan.table_blocks.values()[i];
            require(!quarantined_.contains(plan.table_blocks.values()[i]), "a quarantined block is used again");
        }
        start_copies(plan);
        Flight flight{plan.step, {}, {}, {}};
        std::size_t token = 0;
        for (std::size_t row = 0; row < plan.request_ids.size(); ++row) {
            run_row(plan, row, token, flight);
        }
        require(token == plan.tokens.size(), "a plan has tokens of no row");
        check_budgets(plan);
        check_groups(plan);
        flights_.push_back(std::move(flight));
    }

    // Groups are disjoint, of decode rows, and what they share is the same blocks, computed before this step.
    void check_groups(const PlanBuffer& plan) const {
        std::set<std::int32_t> grouped;
        std::size_t next = 0;
        for (std::size_t g = 0; g < plan.group_sizes.size(); ++g) {
            const std::int32_t size = plan.group_sizes.values()[g];
            const std::int32_t blocks = plan.group_blocks.values()[g];
            require(size >= 2 && blocks >= scheduler.options().shared_blocks_min, "a group that saves nothing");
            const auto rows = plan.group_rows.values().subspan(next, static_cast<std::size_t>(size));
            next += rows.size();
            const auto table_of = [&](std::int32_t row) -> const auto& {
                return slots_[static_cast<std::size_t>(plan.slots.values()[static_cast<std::size_t>(row)])].table;
            };
            for (const std::int32_t row : rows) {
                require(row >= 0 && row < plan.decode_rows, "a group of rows that do not decode");
                require(grouped.insert(row).second, "a row in two groups");
                const std::int32_t start = plan.starts.values()[static_cast<std::size_t>(row)];
                require(blocks * scheduler.options().block_tokens <= start, "a shared block is being written");
                for (std::int32_t i = 0; i < blocks; ++i) {
                    require(table_of(row).at(i) == table_of(rows[0]).at(i), "a group shares unequal blocks");
                }
            }
        }
        require(next == plan.group_rows.size(), "a group without rows, or rows without a group");
    }

    void check_budgets(const PlanBuffer& plan) const {
        const Options& options = scheduler.options();
        std::int32_t prefill = 0;
        for (std::size_t row = 0; row < plan.lengths.size(); ++row) {
            const bool decode = static_cast<std::int32_t>(row) < plan.decode_rows;
            require(!decode || plan.lengths.values()[row] == 1, "a decode row has more than one token");
            prefill += decode ? 0 : plan.lengths.values()[row];
        }
        require(plan.rows() <= options.rows_per_step_max, "I5: rows");
        require(count_of(plan.tokens) <= options.tokens_per_step_max, "I5: tokens");
        require(prefill <= options.prefill_tokens_max, "I5: prefill tokens");
    }

    void run_row(const PlanBuffer& plan, std::size_t row, std::size_t& token, Flight& flight) {
        const std::uint64_t request = plan.request_ids.values()[row];
        const std::int32_t slot_id = plan.slots.values()[row];
        Slot& slot = slots_[static_cast<std::size_t>(slot_id)];
        require(slot.request == request, "a row runs in a slot of another request");
        require(flight.rows.emplace(slot_id, request).second, "I7: a slot has two rows");
        require(state_[request] == State::alive, "a row of a request that has ended");
        const std::int32_t start = plan.starts.values()[row];
        const std::int32_t length = plan.lengths.values()[row];
        require(length > 0, "I7: a row without tokens");
        std::uint64_t value = kv_start(requests_[request].salt);
        for (std::int32_t position = 0; position < start; ++position) {
            value = kv_step(value, slot.tokens.at(static_cast<std::size_t>(position)));
            require(kv(slot, position) == value, "a row reads KV that is not that of its tokens");
        }
        for (std::int32_t position = start; position < start + length; ++position) {
            const std::int32_t planned = plan.tokens.values()[token++];
            const std::int32_t known = slot.tokens.at(static_cast<std::size_t>(position));
            require(planned == known || planned == -1, "a row computes a token that is not the request's");
            value = kv_step(value, known);
            write(slot, position, value, request, flight);
        }
        const bool sampled = plan.sampled.values()[row] != 0;
        if (sampled) {
            require(start + length == static_cast<std::int32_t>(slot.tokens.size()),
                    "a row samples too early");
            slot.tokens.push_back(sample(value));
            flight.tokens.push_back(slot.tokens.back());
        }
    }

    void write(Slot& slot, std::int32_t position, std::uint64_t value, std::uint64_t request,
               Flight& flight) {
        const std::int32_t block = slot.table.at(position / scheduler.options().block_tokens);
        for (const Flight& other : flights_) {
            const auto writer = other.writers.find(block);
            require(writer == other.writers.end() || writer->second == request,
                    "I6: a block of a step in flight is written by another request");
        }
        const auto [writer, is_new] = flight.writers.emplace(block, request);
        require(is_new || writer->second == request, "I2: two requests write one block in one step");
        kv(slot, position) = value;
    }

    void hear(bool failed) {
        const OutcomeBuffer& outcome = outcome_.buffer;
        for (std::size_t i = 0; i < outcome.request_ids.size(); ++i) {
            const std::uint64_t id = outcome.request_ids.values()[i];
            const std::int32_t token = outcome.tokens.values()[i];
            const auto finish = static_cast<FinishReason>(outcome.finishes.values()[i]);
            require(state_[id] != State::finished && state_[id] != State::unborn,
                    "I8: an outcome after the end");
            require(state_[id] != State::cancelling || finish == FinishReason::cancelled,
                    "a token after a cancel");
            require(finish != FinishReason::error || failed, "a row fails by itself");
            if (token >= 0) {
                hear_token(id, token, finish);
            } else {
                require(finish != FinishReason::none, "an outcome without a token or an end");
            }
            if (finish != FinishReason::none) {
                state_[id] = State::finished;
            }
        }
    }

    void hear_token(std::uint64_t id, std::int32_t token, FinishReason finish) {
        const Request& request = requests_[id];
        std::uint64_t value = kv_start(request.salt);
        for (const std::int32_t each : request.prompt) {
            value = kv_step(value, each);
        }
        for (const std::int32_t each : emitted_[id]) {
            value = kv_step(value, each);
        }
        require(token == sample(value), "an emitted token is not what the model says");
        emitted_[id].push_back(token);
        const auto produced = count_of(emitted_[id]);
        const bool stops = std::ranges::find(request.ask.stop_ids, token) != request.ask.stop_ids.end() &&
                           produced >= request.ask.tokens_min;
        const FinishReason expected = stops                                ? FinishReason::stop
                                      : produced == request.ask.tokens_max ? FinishReason::length
                                                                           : FinishReason::none;
        require(finish == expected, "a request ends at the wrong token");
    }

    std::vector<Request> requests_;
    std::vector<std::vector<std::int32_t>> emitted_;
    std::vector<State> state_;
    std::vector<std::vector<std::uint64_t>> tiers_;  // KV of the device, the host, the disk
    std::vector<Copy> copies_;                       // asked for and not reported, oldest first
    std::vector<std::uint64_t> reported_;            // the last reports, to be repeated
    std::set<std::int32_t> quarantined_;
    std::int64_t scrubs_ = 0;
    std::vector<Slot> slots_;
    std::vector<std::unique_ptr<Owned<PlanBuffer>>> plans_;
    std::size_t plan_next_ = 0;
    Owned<OutcomeBuffer> outcome_;
    std::deque<Flight> flights_;
    std::vector<std::int32_t> last_;
    StepId step_last_{};
};

}  // namespace tokenspeed::world
