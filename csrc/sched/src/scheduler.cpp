// SPDX-License-Identifier: MIT
#include "sched/scheduler.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/plant.h"
#include "request/transitions.h"
#include "sched/policy.h"

namespace tokenspeed {
namespace {

std::uint64_t zigzag(std::int32_t value) {
    const auto wide = static_cast<std::int64_t>(value);
    return static_cast<std::uint64_t>(wide < 0 ? -2 * wide - 1 : 2 * wide);
}

}  // namespace

Scheduler::Scheduler(const Options& options)
    : options_(options), holdings_(options_), planner_(options_, holdings_) {
    if (options_.journal) {
        holdings_.log.note(EventKind::options, options_.text());
    }
}

SubmitStatus Scheduler::judge(const Submission& submission) const {
    const std::int32_t prompt_tokens = count_of(submission.prompt);
    if (prompt_tokens == 0 || submission.ask.tokens_max < 1) {
        return SubmitStatus::empty;
    }
    if (holdings_.find(submission.id)) {
        return SubmitStatus::duplicate;
    }
    const std::int64_t context = policy::context_needed(prompt_tokens, submission.ask.tokens_max);
    if (context + 1 > options_.context_tokens_max) {
        return SubmitStatus::too_long;
    }
    if (policy::blocks_for(context, options_.block_tokens) > options_.blocks_total) {
        return SubmitStatus::exceeds_pool;
    }
    if (holdings_.waiting.size() >= options_.waiting_max) {
        return SubmitStatus::queue_full;
    }
    return holdings_.door.size() >= options_.door_max && is_stranger(submission.terms) ? SubmitStatus::door_full
                                                                                        : SubmitStatus::accepted;
}

bool Scheduler::is_stranger(const Terms& terms) const {
    const Session* const known =
        holdings_.sessions.find(terms.root.value != 0 ? terms.root : terms.session);
    return options_.session_admission && (known == nullptr || !holdings_.sessions.admitted(known->root));
}

SubmitStatus Scheduler::submit(const Submission& submission) {
    const auto prompt_tokens = count_of(submission.prompt);
    holdings_.at(submission.now_us);
    const SubmitStatus status = judge(submission);
    log_terms(submission);
    holdings_.log.add(EventKind::submit, {submission.id.value, static_cast<std::uint64_t>(prompt_tokens),
                                          static_cast<std::uint64_t>(submission.ask.tokens_max),
                                          static_cast<std::uint64_t>(status), digest_of(0, submission.prompt),
                                          submission.now_us,
                                          static_cast<std::uint64_t>(submission.ask.tokens_min),
                                          zigzag(submission.priority), submission.ask.stop_ids.size()});
    if (status != SubmitStatus::accepted) {
        return status;
    }
    Terms terms = submission.terms;
    terms.floor_mtps = !options_.floor ? 0 : terms.floor_mtps > 0 ? terms.floor_mtps : options_.floor_mtps;
    const TenantIndex tenant = holdings_.share.find_or_make(terms.tenant);
    const std::int64_t key_ns = holdings_.share.enter(tenant);
    const std::int32_t priority = policy::urgency(submission.priority, terms.deadline_us, submission.now_us);
    ++sequence_;
    const Rank rank = options_.fair_share
                          ? policy::fair_rank(key_ns, FairShare::kEstimateNs, sequence_, priority)
                          : policy::rank(sequence_, priority);
    auto ledger = std::make_unique<Ledger>(submission.id, rank, submission.ask, submission.prompt,
                                           submission.now_us, terms);
    if (options_.prefix_cache) {
        ledger->hash_blocks(options_.hash_key, hash_salt(options_.hash_key, submission.salt),
                            options_.block_tokens);
    }
    note_prompt(submission, *ledger);
    const SessionIndex session = holdings_.sessions.enter(
        terms, tenant, policy::blocks_for(prompt_tokens, options_.block_tokens),
        policy::blocks_for(policy::context_at_worst(prompt_tokens, 0, submission.ask.tokens_max),
                           options_.block_tokens),
        submission.now_us);
    ledger->set_session(session);
    ++holdings_.sessions[session].account.requests;
    ++holdings_.share[tenant].account.requests;
    ++holdings_.counters.accepted;
    if (terms.deadline_us != 0) {
        holdings_.deadline_us = std::min(holdings_.deadline_us, terms.deadline_us);
    }
    if (options_.retention) {
        holdings_.retention.resume(terms.session, submission.now_us);
    }
    if (holdings_.sessions.admitted(session)) {
        holdings_.enter(Waiting{std::move(ledger)});
        if (holdings_.waiting.rank(0) == rank) {
            holdings_.wake();  // another request is the first of those waiting
        }
    } else {
        holdings_.sessions.wait(session, submission.now_us);
        holdings_.enter(AtDoor{std::move(ledger)});
        open_door();
    }
    return SubmitStatus::accepted;
}

void Scheduler::open_door() {
    const std::uint64_t now_us = holdings_.now_us;
    Roster<AtDoor>& door = holdings_.door;
    while (!door.empty() && !turns_wait_long()) {
        if (holdings_.sessions.try_admit(first_at_door(), has_spare_time(), now_us)) {
            move_admitted();
        } else if (!holdings_.sessions.make_way(now_us)) {
            break;
        }
    }
    constexpr std::uint64_t kLookEveryUs = 1'000'000;
    if (!door.empty() && now_us >= aging_looked_us_ + kLookEveryUs) {
        aging_looked_us_ = now_us;
        bool any = false;  // of those behind the first, who have waited as long as any may
        for (std::int32_t i = 0; i < door.size(); ++i) {
            any = holdings_.sessions.try_admit_aged(door[door.seat(i)].ledger->session(), now_us) || any;
        }
        if (any) {
            move_admitted();
        }
    }
}

bool Scheduler::has_spare_time() const {
    return busy_share_ >= 0 && busy_share_ < policy::kBusyShare && holdings_.waiting.empty();
}

void Scheduler::note_busy(std::uint64_t step_us) {
    constexpr std::uint64_t kSpanUs = 2'000'000;
    constexpr double kShare = 0.3;
    busy_us_ += step_us;
    const std::uint64_t passed_us = holdings_.now_us - busy_since_us_;
    if (passed_us >= kSpanUs && busy_us_ > 0) {
        const double share = static_cast<double>(busy_us_) / static_cast<double>(passed_us);
        busy_share_ = busy_share_ < 0 ? 1 : busy_share_ + kShare * (share - busy_share_);
        busy_us_ = 0;
        busy_since_us_ = holdings_.now_us;
    }
}

bool Scheduler::turns_wait_long() const {
    if (holdings_.waiting.empty()) {
        return false;
    }
    const std::uint64_t arrival_us = holdings_.waiting[holdings_.waiting.seat(0)].ledger->arrival_us();
    return holdings_.now_us > arrival_us + policy::kTurnWaitMostUs;
}

SessionIndex Scheduler::first_at_door() const {
    const Roster<AtDoor>& door = holdings_.door;
    const Sessions& sessions = holdings_.sessions;
    SessionIndex first = kNoSession;  // of the first whose tenant may have another; else of the very first
    for (std::int32_t i = 0; i < door.size(); ++i) {
        const SessionIndex session = door[door.seat(i)].ledger->session();
        if (sessions.returning() > 0 && sessions.returns(session)) {
            return session;
        }
        if (first == kNoSession && sessions.within_share(session)) {
            first = session;
        }
        if (first != kNoSession && sessions.returning() == 0) {
            return first;
        }
    }
    return first != kNoSession ? first : door[door.seat(0)].ledger->session();
}

void Scheduler::move_admitted() {
    Roster<AtDoor>& door = holdings_.door;
    for (std::int32_t i = 0; i < door.size();) {
        const Seat seat = door.seat(i);
        if (!holdings_.sessions.admitted(door[seat].ledger->session())) {
            ++i;
            continue;
        }
        holdings_.enter(on(door.extract(seat), Enter{}));
        holdings_.wake();
    }
}

void Scheduler::expire() {
    if (holdings_.now_us < holdings_.deadline_us) {
        return;
    }
    holdings_.deadline_us = ~0ULL;
    expire_in(holdings_.door);
    expire_in(holdings_.waiting);
}

template <class State>
void Scheduler::expire_in(Roster<State>& roster) {
    for (std::int32_t i = 0; i < roster.size();) {
        const Seat seat = roster.seat(i);
        const Ledger& ledger = *roster[seat].ledger;
        const std::uint64_t deadline_us = ledger.terms().deadline_us;
        if (deadline_us == 0 || ledger.output_tokens() > 0) {
            ++i;
            continue;
        }
        if (holdings_.now_us < deadline_us) {
            holdings_.deadline_us = std::min(holdings_.deadline_us, deadline_us);
            ++i;
            continue;
        }
        const Parting part = parting(ledger);
        holdings_.log.add(EventKind::decision, {static_cast<std::uint64_t>(Reason::deadline_passed),
                                                ledger.id().value, deadline_us});
        ++holdings_.counters.deadlines_passed;
        Finished finished = on(roster.extract(seat), Expire{});
        ended_.push_back({finished.id, finished.reason});
        finish(std::move(finished), part);
        holdings_.wake();
    }
}

void Scheduler::log_terms(const Submission& submission) {
    const Terms& terms = submission.terms;
    const bool spoken = terms.session.value != 0 || terms.root.value != 0 || terms.tenant.value != 0 ||
                        terms.floor_mtps != 0 || terms.deadline_us != 0 || terms.retain_us != 0 || terms.final;
    if (spoken) {
        holdings_.log.add(EventKind::terms,
                          {submission.id.value, terms.session.value, terms.root.value, terms.tenant.value,
                           static_cast<std::uint64_t>(terms.floor_mtps), terms.deadline_us, terms.retain_us,
                           terms.final ? 1U : 0U});
    }
}

void Scheduler::note_prompt(const Submission& submission, const Ledger& ledger) {
    if (!options_.journal) {
        return;
    }
    const Hash128 salt = hash_salt(options_.hash_key, submission.salt);
    noted_.assign({submission.id.value, EventLog::number_of(salt)});
    for (const Hash128 hash : ledger.block_hashes()) {
        noted_.push_back(EventLog::number_of(hash));
    }
    holdings_.log.note(EventKind::prompt, noted_);
}

void Scheduler::idle_session(SessionId session, IdleClass idle, std::uint64_t gap_key, std::uint64_t now_us) {
    holdings_.log.add(EventKind::idle_session,
                      {session.value, static_cast<std::uint64_t>(idle), gap_key, now_us});
    holdings_.at(now_us);
    if (options_.retention) {
        classify(holdings_.retention.idle(session, idle, gap_key, now_us));
    }
}

void Scheduler::close_session(SessionId session, std::uint64_t now_us) {
    holdings_.log.add(EventKind::close_session, {session.value, now_us});
    holdings_.at(now_us);
    if (options_.retention) {
        classify(holdings_.retention.close(session));
    }
    holdings_.sessions.close(session, holdings_.now_us);
    open_door();
}

void Scheduler::classify(const std::optional<Retention::Leaf>& leaf) {
    if (leaf) {
        if (holdings_.tree.holds(leaf->block, leaf->hash)) {
            holdings_.tree.classify(leaf->block, leaf->rest);
        }
        holdings_.tiers.classify(leaf->hash, leaf->rest);
    }
}

void Scheduler::transferred(std::span<const std::uint64_t> copies, std::span<const std::uint8_t> results,
                            std::uint64_t now_us) {
    holdings_.at(now_us);
    std::size_t begin = 0;
    bool changed = false;
    for (std::size_t i = 0; i < copies.size(); ++i) {
        const bool last = i + 1 == copies.size() || copies[i + 1] != copies[i] + 1 || results[i + 1] != results[i];
        if (last) {
            holdings_.log.add(EventKind::transferred, {copies[begin], i + 1 - begin, results[i], now_us});
            begin = i + 1;
        }
        changed |= holdings_.tiers.transferred(copies[i], CopyResult{std::min<std::uint8_t>(results[i], 2)});
    }
    for (const BlockId each : holdings_.tiers.take_corrupt()) {
        ++holdings_.counters.blocks_corrupt;
        holdings_.quarantine(each);
    }
    if (changed) {
        holdings_.wake();
    }
}

void Scheduler::corrupt(std::span<const std::int32_t> blocks, std::uint64_t now_us) {
    holdings_.at(now_us);
    for (const std::int32_t each : blocks) {
        holdings_.log.add(EventKind::corrupt, {static_cast<std::uint64_t>(each), now_us});
        if (each >= 0 && each < options_.blocks_total) {
            ++holdings_.counters.blocks_corrupt;
            holdings_.quarantine(BlockId{each});
        }
    }
}

std::int32_t Scheduler::adopt(TierKind tier, std::span<const std::int32_t> blocks, std::span<const Hash128> hashes,
                              std::span<const Hash128> parents) {
    const std::int32_t placed = holdings_.tiers.adopt(tier, blocks, hashes, parents);
    holdings_.log.add(EventKind::adopt, {static_cast<std::uint64_t>(tier), blocks.size(),
                                         static_cast<std::uint64_t>(placed), digest_of(0, hashes)});
    return placed;
}

bool Scheduler::idle() const {
    return holdings_.door.empty() && holdings_.waiting.empty() && holdings_.requests_running() == 0 &&
           holdings_.flights.empty();
}

bool Scheduler::cancel(RequestId id) {
    const std::optional<Place> place = holdings_.find(id);
    holdings_.log.add(EventKind::cancel, {id.value, place ? 1U : 0U});
    if (!place) {
        return false;
    }
    const Parting part = parting(holdings_.ledger(*place));
    const auto end = [&]() -> Finished {
        switch (place->kind) {
            case StateKind::prefilling:
                return on(holdings_.prefilling.extract(place->seat), Cancel{});
            case StateKind::decoding:
                return on(holdings_.decoding.extract(place->seat), Cancel{});
            case StateKind::at_door:
                return on(holdings_.door.extract(place->seat), Cancel{});
            case StateKind::waiting:
                break;
        }
        holdings_.wake();  // another request may be the first of those waiting
        return on(holdings_.waiting.extract(place->seat), Cancel{});
    };
    Finished finished = end();
    if (planted(Plant::freed_in_flight)) {
        finished.leavings.reset();
        holdings_.wake();
    }
    ended_.push_back({id, finished.reason});
    finish(std::move(finished), part);
    return true;
}

Scheduler::Parting Scheduler::parting(const Ledger& ledger) const {
    return {ledger.session(), policy::blocks_for(ledger.tokens_known(), options_.block_tokens),
            ledger.terms().final};
}

void Scheduler::finish(Finished&& finished, const Parting& parting) {
    constexpr double kGapShare = 0.1;
    const std::uint64_t now_us = holdings_.now_us;
    finish_gap_us_ += kGapShare * (static_cast<double>(now_us - finished_us_) - finish_gap_us_);
    finished_us_ = now_us;
    holdings_.places.erase(finished.id);
    holdings_.tiers.forget(finished.id);
    ++holdings_.counters.finished;
    holdings_.log.add(EventKind::finish, {finished.id.value, static_cast<std::uint64_t>(finished.reason)});
    if (finished.leavings) {
        const BlockId last = finished.leavings->table.path().last();
        if (options_.retention && last != kNoBlock) {
            const Hash128 hash = holdings_.tree.hash(last);
            const RestClass rest =
                holdings_.retention.end(finished.terms, last, hash, holdings_.now_us);
            holdings_.tree.classify(last, rest);
        }
        holdings_.tiers.rest(last);
        holdings_.release(std::move(*finished.leavings), parting.session);
    }
    holdings_.share.leave(holdings_.sessions[parting.session].tenant);
    holdings_.sessions.leave(parting.session, parting.blocks, parting.final, now_us);
}

bool Scheduler::plan(PlanBuffer& plan, std::uint64_t now_us) {
    holdings_.at(now_us);
    if (holdings_.flights.size() == options_.steps_in_flight_max()) {
        return false;
    }
    expire();
    open_door();
    if (!planner_.plan(plan, StepId{steps_ + 1}, now_us)) {
        holdings_.log.add(EventKind::no_plan, {now_us});
        return false;
    }
    note_rows(plan);
    ++steps_;
    Counters& counters = holdings_.counters;
    ++counters.steps;
    counters.rows += plan.rows();
    counters.tokens_computed += count_of(plan.tokens);
    holdings_.log.add(EventKind::plan, {plan.step.value, now_us, static_cast<std::uint64_t>(plan.rows()),
                                        static_cast<std::uint64_t>(plan.decode_rows),
                                        static_cast<std::uint64_t>(plan.tokens.size()), plan.digest(),
                                        static_cast<std::uint64_t>(plan.work.context_tokens),
                                        static_cast<std::uint64_t>(plan.work.prefill_pairs)});
    return true;
}

void Scheduler::note_rows(const PlanBuffer& plan) {
    if (!options_.journal) {
        return;
    }
    noted_.assign({plan.step.value});
    for (std::size_t row = 0; row < plan.request_ids.size(); ++row) {
        const auto length = static_cast<std::uint64_t>(plan.lengths.values()[row]);
        noted_.push_back(plan.request_ids.values()[row]);
        noted_.push_back(2 * length + plan.sampled.values()[row]);
    }
    const auto rows = std::span<const std::uint64_t>(noted_).subspan(1);
    if (!std::ranges::equal(rows, rows_noted_)) {
        rows_noted_.assign(rows.begin(), rows.end());
        holdings_.log.note(EventKind::rows, noted_);
    }
}

CommitStatus Scheduler::commit(StepId step, std::span<const std::int32_t> tokens, OutcomeBuffer& outcome,
                               std::uint64_t now_us, std::uint64_t step_us) {
    outcome.clear();
    holdings_.at(now_us);
    Flights& flights = holdings_.flights;
    if (planted(Plant::unordered_commit) && flights.size() == 2 && flights[1].step() == step) {
        flights.swap_order();
    }
    if (flights.empty() || flights[0].step() != step) {
        holdings_.log.add(EventKind::late, {step.value});
        return CommitStatus::late;
    }
    if (count_of(tokens) != flights[0].samples()) {
        return CommitStatus::wrong_size;
    }
    holdings_.log.add(EventKind::commit,
                      {step.value, static_cast<std::uint64_t>(tokens.size()), digest_of(0, tokens), now_us, step_us});
    InFlight& flight = flights.take_oldest();
    learn(flight, step_us);
    note_busy(step_us);
    holdings_.retired_us = holdings_.now_us;
    noted_.assign({step.value});
    samples_committed_ = 0;
    for (std::size_t i = 0; i < flight.rows().size(); ++i) {
        const InFlight::Row& row = flight.rows()[i];
        const auto sample = static_cast<std::size_t>(samples_committed_);
        commit_row(row, row.sampled ? tokens[sample] : 0, shares_ns_[i], outcome);
        samples_committed_ += row.sampled ? 1 : 0;
    }
    if (noted_.size() > 1) {
        holdings_.log.note(EventKind::results, noted_);
    }
    const bool freed = flight.retire();
    if (freed && !planted(Plant::lost_wakeup)) {
        holdings_.wake();
    }
    report_ended(outcome);
    return CommitStatus::committed;
}

void Scheduler::learn(const InFlight& flight, std::uint64_t step_us) {
    const auto begun_us = std::max(flight.planned_us(), holdings_.retired_us);
    const auto elapsed_us = static_cast<double>(holdings_.now_us - std::min(holdings_.now_us, begun_us));
    holdings_.cost.learn(flight.work(), static_cast<double>(step_us), elapsed_us);
    const auto step_ns = static_cast<std::int64_t>(step_us) * 1000;
    holdings_.counters.device_ns += step_ns;
    works_.clear();
    for (const InFlight::Row& row : flight.rows()) {
        works_.push_back(row.work);
    }
    shares_ns_.assign(works_.size(), 0);
    if (step_us > 0) {
        divide(step_ns, holdings_.cost.prices(), works_, shares_ns_);
    }
}

void Scheduler::account_row(const InFlight::Row& row, std::int64_t share_ns, bool alive) {
    Account& session =
        (alive ? holdings_.sessions[row.session] : holdings_.sessions.late(row.session_id)).account;
    Account& tenant = holdings_.share[row.tenant].account;
    holdings_.share.use(row.tenant, share_ns);
    if (row.work.decode) {
        session.decode_ns += share_ns;
        tenant.decode_ns += share_ns;
    } else {
        session.prefill_ns += share_ns;
        tenant.prefill_ns += share_ns;
        session.tokens_computed += row.work.length;
        tenant.tokens_computed += row.work.length;
    }
    if (row.sampled && alive) {
        ++session.tokens_output;
        ++tenant.tokens_output;
    }
}

void Scheduler::commit_row(const InFlight::Row& row, std::int32_t token, std::int64_t share_ns,
                           OutcomeBuffer& outcome) {
    const std::optional<Place> place = holdings_.find(row.request);
    Residence* const residence = place ? holdings_.residence(*place) : nullptr;
    const bool alive = residence != nullptr && residence->binding == row.binding;
    account_row(row, share_ns, alive);
    if (!alive) {
        ++holdings_.counters
              .results_late;  // the request ended, or was retracted, while the step was in flight
        if (planted(Plant::lost_token) && place && place->kind == StateKind::waiting && row.sampled) {
            holdings_.waiting[place->seat].ledger->append(token);
        }
        return;
    }
    if (place->kind == StateKind::prefilling) {
        commit_computed(holdings_.prefilling[place->seat], row.computed);
        return;
    }
    if (!row.sampled || token >= 0) {  // nobody may share what a failed row has written
        commit_computed(holdings_.decoding[place->seat], row.computed);
    }
    if (row.sampled) {
        commit_sample(place->seat, token, outcome);
    }
}

template <class State>
void Scheduler::commit_computed(State& request, std::int32_t tokens) {
    (void)on(std::move(request), Computed{tokens});
    if (options_.prefix_cache) {
        freeze_full(*request.ledger, request.residence);
    }
}

void Scheduler::commit_sample(Seat seat, std::int32_t token, OutcomeBuffer& outcome) {
    Decoding& request = holdings_.decoding[seat];
    const RequestId id = request.ledger->id();
    const Ask& ask = request.ledger->ask();
    const FinishReason reason =
        token < 0 ? FinishReason::error : policy::judge(ask, request.ledger->output_tokens() + 1, token);
    outcome.request_ids.push(id.value);
    outcome.tokens.push(token < 0 ? -1 : token);
    outcome.finishes.push(static_cast<std::uint8_t>(reason));
    holdings_.counters.tokens_sampled += token < 0 ? 0 : 1;
    if (reason == FinishReason::none) {
        note_token(*on(std::move(request), Token{token}).ledger);
        if (request.pace.promised()) {
            request.pace.advance(holdings_.now_us * 1000);
        }
        return;
    }
    if (reason != FinishReason::length) {
        note_said(reason == FinishReason::error ? Said::failed : Said::stop);
    }
    if (planted(Plant::double_finish) && reason == FinishReason::stop) {
        ended_.push_back({id, reason});
    }
    const Parting part = parting(*request.ledger);
    finish(reason == FinishReason::error ? on(holdings_.decoding.extract(seat), Fail{})
                                         : on(holdings_.decoding.extract(seat), Stop{token, reason}),
           part);
}

void Scheduler::note_token(Ledger& ledger) {
    const std::int32_t known = ledger.tokens_known();
    if (options_.journal && options_.prefix_cache && known % options_.block_tokens == 0) {
        const std::int32_t block = known / options_.block_tokens - 1;
        const Hash128 hash = ledger.block_hash(options_.hash_key, options_.block_tokens, block);
        note_said(Said{static_cast<std::uint32_t>(Said::first) + EventLog::number_of(hash)});
    }
}

void Scheduler::note_said(Said said) {
    if (options_.journal) {
        noted_.push_back(samples_committed_);
        noted_.push_back(static_cast<std::uint64_t>(said));
    }
}

void Scheduler::freeze_full(Ledger& ledger, Residence& residence) {
    const std::int32_t early = planted(Plant::partial_freeze) ? 1 : 0;
    while (true) {
        const std::int32_t block = residence.table.path().size();
        const std::int32_t full = (block + 1) * options_.block_tokens;
        if (full > std::min(residence.computed + early, ledger.tokens_known())) {
            return;
        }
        const Hash128 hash = ledger.block_hash(options_.hash_key, options_.block_tokens, block);
        std::optional<Table::Redirect> redirect = residence.table.freeze_next(holdings_.tree, hash);
        if (!redirect && options_.stamps) {
            holdings_.frozen.push_back({residence.table.path().last(), hash});
        }
        if (redirect) {
            ++holdings_.counters.blocks_deduplicated;
            if (!planted(Plant::unsent_redirect)) {
                holdings_.redirects.push_back({residence.slot.slot(), redirect->index, redirect->canonical});
            }
            holdings_.release(std::move(redirect->duplicate));
        }
    }
}

void Scheduler::drain(OutcomeBuffer& outcome) {
    outcome.clear();
    report_ended(outcome);
}

void Scheduler::report_ended(OutcomeBuffer& outcome) {
    const std::size_t ends = std::min(ended_.size(), outcome.request_ids.room());
    for (std::size_t i = 0; i < ends; ++i) {
        outcome.request_ids.push(ended_[i].id.value);
        outcome.tokens.push(-1);
        outcome.finishes.push(static_cast<std::uint8_t>(ended_[i].reason));
    }
    ended_.erase(ended_.begin(), ended_.begin() + static_cast<std::ptrdiff_t>(ends));
}

std::int32_t Scheduler::flush_prefix() {
    std::int32_t blocks = 0;
    while (holdings_.tree.evict_one()) {
        ++blocks;
    }
    blocks += holdings_.tiers.flush();
    holdings_.log.add(EventKind::flush, {static_cast<std::uint64_t>(blocks)});
    return blocks;
}

std::uint64_t Scheduler::retry_after_us() const {
    if (!holdings_.door.empty()) {
        return holdings_.sessions.wait_us(holdings_.door.size());
    }
    return static_cast<std::uint64_t>(finish_gap_us_ * (1 + holdings_.waiting.size() / 2));
}

namespace {

TierStats tier_stats(const Tier* tier) {
    if (tier == nullptr) {
        return {};
    }
    return {tier->pool.blocks_total(), tier->pool.blocks_in(BlockState::free),
            tier->pool.blocks_in(BlockState::frozen), tier->pool.blocks_in(BlockState::in_flight),
            tier->pool.blocks_in(BlockState::quarantined), tier->tree.evictions()};
}

}  // namespace

Stats Scheduler::stats() const {
    const Pool& pool = holdings_.pool;
    return {.waiting = holdings_.waiting.size(),
            .prefilling = holdings_.prefilling.size(),
            .decoding = holdings_.decoding.size(),
            .blocks_total = pool.blocks_total(),
            .blocks_free = pool.blocks_in(BlockState::free),
            .blocks_leased = pool.blocks_in(BlockState::leased),
            .blocks_frozen = pool.blocks_in(BlockState::frozen),
            .blocks_in_flight = pool.blocks_in(BlockState::in_flight),
            .blocks_evictable = holdings_.tree.evictable(),
            .slots_free = holdings_.slots.slots_free(),
            .steps_in_flight = holdings_.flights.size(),
            .blocks_quarantined = pool.blocks_in(BlockState::quarantined),
            .host = tier_stats(holdings_.tiers.tier(TierKind::host)),
            .disk = tier_stats(holdings_.tiers.tier(TierKind::disk)),
            .transfers = static_cast<std::int32_t>(holdings_.tiers.transfers()),
            .moved = holdings_.tiers.counters(),
            .evictions = holdings_.tree.evictions(),
            .at_door = holdings_.door.size(),
            .sessions_admitted = holdings_.sessions.families_admitted(),
            .blocks_charged = holdings_.sessions.blocks_charged(),
            .blocks_budget = holdings_.sessions.blocks_budget(),
            .counters = holdings_.counters};
}

std::span<const std::int32_t> Scheduler::tokens(RequestId id) const {
    const std::optional<Place> place = holdings_.find(id);
    return place ? holdings_.ledger(*place).tokens() : std::span<const std::int32_t>();
}

void Scheduler::check() const { holdings_.check_all(options_, StepId{steps_}); }

}  // namespace tokenspeed
