// SPDX-License-Identifier: MIT
#include "sched/holdings.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/plant.h"
#include "request/transitions.h"
#include "sched/policy.h"

namespace tokenspeed {

Holdings::Holdings(const Options& options)
    : log(options.log_bytes, options.seed, options.journal),
      retention(options.sessions_max),
      misses(options.sessions_max, options.blocks_total),
      pool(KvKind::full_attention, options.blocks_total, options.block_tokens),
      tree(pool),
      slots(options.slots_max),
      door(options.door_max),
      waiting(options.waiting_max + options.slots_max + options.door_max),
      prefilling(options.slots_max),
      decoding(options.slots_max),
      sharing(options),
      sessions(options, log),
      cost(options),
      tiers(options, pool, tree, retention, log) {
    if (options.retention) {
        tree.appraise_by(retention);
    }
    places.reserve(static_cast<std::size_t>(options.waiting_max + 2 * options.slots_max));
}

bool Holdings::flights_hold() const {
    for (std::int32_t i = 0; i < flights.size(); ++i) {
        if (flights[i].holds()) {
            return true;
        }
    }
    return false;
}

std::optional<BlockLease> Holdings::try_block() {
    if (pool.blocks_in(BlockState::free) == 0) {
        tree.evict_one();
    }
    return pool.try_lease();
}

std::optional<Place> Holdings::find(RequestId id) const {
    const auto found = places.find(id);
    return found == places.end() ? std::nullopt : std::optional(found->second);
}

Residence* Holdings::residence(Place place) {
    switch (place.kind) {
        case StateKind::prefilling:
            return &prefilling[place.seat].residence;
        case StateKind::decoding:
            return &decoding[place.seat].residence;
        case StateKind::at_door:
        case StateKind::waiting:
            break;
    }
    return nullptr;
}

const Ledger& Holdings::ledger(Place place) const {
    switch (place.kind) {
        case StateKind::prefilling:
            return *prefilling[place.seat].ledger;
        case StateKind::decoding:
            return *decoding[place.seat].ledger;
        case StateKind::at_door:
            return *door[place.seat].ledger;
        case StateKind::waiting:
            break;
    }
    return *waiting[place.seat].ledger;
}

void Holdings::release(Residence&& leavings, SessionIndex session) {
    sessions.hold(session, TierKind::device, -leavings.table.size(), now_us);
    const SlotId slot = leavings.slot.slot();
    std::erase_if(redirects, [slot](const PendingRedirect& each) { return each.slot == slot; });
    sharing.forget(slot);
    if (!flights.empty()) {
        flights.newest().hold(std::move(leavings));
        return;
    }
    leavings.clear();
    wake();
}

void Holdings::release(BlockLease&& duplicate) {
    BlockList spare(pool);
    spare.push(std::move(duplicate));
    if (!flights.empty()) {
        flights.newest().hold(std::move(spare));
        return;
    }
    spare.clear();
    wake();
}

void Holdings::retract(Place place) {
    Retracted retracted = place.kind == StateKind::prefilling ? on(prefilling.extract(place.seat), Retract{})
                                                              : on(decoding.extract(place.seat), Retract{});
    ++counters.retractions;
    log.add(EventKind::retract, {retracted.waiting.ledger->id().value});
    const SessionIndex session = retracted.waiting.ledger->session();
    enter(std::move(retracted.waiting));
    release(std::move(retracted.leavings), session);
    wake();
}

void Holdings::quarantine(BlockId block) {
    if (pool.state(block) != BlockState::frozen || tree.condemned(block)) {
        return;
    }
    std::vector<Place> readers;
    const auto look = [&](auto& roster, StateKind kind) {
        for (std::int32_t i = 0; i < roster.size(); ++i) {
            const Seat seat = roster.seat(i);
            if (tree.on_path(block, roster[seat].residence.table.path().last())) {
                readers.push_back({kind, seat});
            }
        }
    };
    look(prefilling, StateKind::prefilling);
    look(decoding, StateKind::decoding);
    for (const Place each : readers) {
        retract(each);
    }
    (void)tree.condemn(block);
    wake();
}

bool Holdings::scrub_if_stuck(std::int32_t running) {
    const bool stuck = requests_running() <= running && !flights_hold() &&
                       pool.blocks_in(BlockState::quarantined) > 0;
    if (stuck) {
        pool.scrub();
        ++counters.scrubs;
    }
    return stuck;
}

void Holdings::block(RequestId id, Reason reason) {
    blocked = true;
    log.add(EventKind::decision, {static_cast<std::uint64_t>(reason), id.value, 0});
}

double Holdings::device_free_us() const {
    auto free_us = static_cast<double>(std::max(now_us, retired_us));
    if (!flights.empty()) {
        auto end_us = static_cast<double>(std::max(retired_us, flights[0].planned_us()));
        for (std::int32_t i = 0; i < flights.size(); ++i) {
            end_us += cost.upper(flights[i].work());
        }
        free_us = std::max(free_us, end_us);
    }
    return free_us;
}

namespace {

// Recounts who holds what, and compares.
class Audit {
 public:
    explicit Audit(const Holdings& holdings)
        : holdings_(holdings),
          writers_(static_cast<std::size_t>(holdings.pool.blocks_total()), 0),
          paths_ending_(writers_.size(), 0) {}

    void add_blocks(const BlockList& blocks, BlockState state, Invariant which) {
        for (std::int32_t i = 0; i < blocks.size(); ++i) {
            check(holdings_.pool.state(blocks[i]) == state, which, "a writable block is in the wrong state");
            check(++writers_[blocks[i].index()] == 1, Invariant::I2, "a writable block has two leases");
        }
        (state == BlockState::leased ? leased_ : in_flight_) += blocks.size();
    }
    void add_path(const PathLease& path) {
        if (path.last() != kNoBlock) {
            ++paths_ending_[path.last().index()];
        }
    }
    void add_residence(const Residence& residence, BlockState state) {
        add_path(residence.table.path());
        add_blocks(residence.table.tail(), state,
                   state == BlockState::leased ? Invariant::I2 : Invariant::I6);
        ++slots_;
    }
    void add_running(const Ledger& ledger, const Residence& residence) {
        const std::int32_t block_tokens = holdings_.pool.block_tokens();
        check(residence.computed <= residence.planned, Invariant::I7,
              "more tokens are computed than planned");
        check(residence.table.path().size() * block_tokens <= residence.computed, Invariant::I6,
              "a block that a step in flight writes is frozen");
        check(residence.table.size() * block_tokens >= residence.planned, Invariant::I7,
              "a planned token has no block");
        check(ledger.output_tokens() < ledger.ask().tokens_max, Invariant::I8,
              "a request outlives its last token");
        add_residence(residence, BlockState::leased);
    }
    void finish(std::int32_t slots_max) const {
        check(leased_ == holdings_.pool.blocks_in(BlockState::leased), Invariant::I1,
              "a leased block has no lease");
        check(in_flight_ == holdings_.pool.blocks_in(BlockState::in_flight), Invariant::I1,
              "a block in flight belongs to no step");
        check(slots_ + holdings_.slots.slots_free() == slots_max, Invariant::I1, "a slot is lost");
        holdings_.pool.check_counts();
        holdings_.tree.check_tree(paths_ending_);
    }

 private:
    const Holdings& holdings_;
    std::vector<std::int32_t> writers_;
    std::vector<std::int32_t> paths_ending_;
    std::int32_t leased_ = 0;
    std::int32_t in_flight_ = 0;
    std::int32_t slots_ = 0;
};

}  // namespace

void Holdings::check_all(const Options& options, StepId step_last) const {
    Audit audit(*this);
    const auto waits_max = static_cast<std::uint64_t>(2 * options.slots_max + 16);  // K of I10
    const auto waited = [&](const Residence& residence) {
        // With tiers a row may have to wait for copies, and steps of copies alone pass meanwhile.
        return tiers.any() ? 0 : step_last.value - residence.planned_last.value;
    };
    for (std::int32_t i = 0; i < prefilling.size(); ++i) {
        const Prefilling& each = prefilling[prefilling.seat(i)];
        check(each.residence.planned < each.ledger->tokens_known(), Invariant::I7,
              "a prefill has nothing to plan");
        check(i > 0 || options.rows_per_step_max == 1 || waited(each.residence) <= waits_max, Invariant::I10,
              "the first prefill is not planned");
        audit.add_running(*each.ledger, each.residence);
    }
    for (std::int32_t i = 0; i < decoding.size(); ++i) {
        const Decoding& each = decoding[decoding.seat(i)];
        check(each.residence.planned == each.ledger->tokens_known() + each.samples_in_flight - 1,
              Invariant::I7, "a decode row is not at the end of its context");
        check(each.samples_in_flight > 0 || each.token_last == each.ledger->tokens().back(), Invariant::I7,
              "a decode row feeds a token that is not the last");
        check(each.samples_in_flight > 0 || waited(each.residence) <= waits_max, Invariant::I10,
              "a decode row is not planned");
        audit.add_running(*each.ledger, each.residence);
    }
    for (std::int32_t i = 0; i < flights.size(); ++i) {
        check(i == 0 || flights[i - 1].step() < flights[i].step(), Invariant::I9,
              "steps in flight are out of order");
        for (const Residence& each : flights[i].residences()) {
            audit.add_residence(each, BlockState::in_flight);
        }
        for (const BlockList& each : flights[i].blocks()) {
            audit.add_blocks(each, BlockState::in_flight, Invariant::I6);
        }
    }
    tiers.visit_device([&](const PathLease& path) { audit.add_path(path); },
                       [&](const BlockList& blocks) { audit.add_blocks(blocks, BlockState::in_flight, Invariant::I11); });
    tiers.check_tiers();
    audit.finish(options.slots_max);
    const auto alive = static_cast<std::int64_t>(door.size() + waiting.size() + requests_running());
    check(static_cast<std::int64_t>(places.size()) == alive, Invariant::I8, "a live request cannot be found");
    check(counters.accepted == counters.finished + alive, Invariant::I8,
          "a request is lost or finished twice");
    check_sessions();
}

void Holdings::check_sessions() const {
    sessions.check_sessions();
    for (std::int32_t i = 0; i < door.size(); ++i) {
        check(!sessions.admitted(door[door.seat(i)].ledger->session()), Invariant::I12,
              "a request of an admitted session is at the door");
    }
    for (std::int32_t i = 0; i < waiting.size(); ++i) {
        check(sessions.admitted(waiting[waiting.seat(i)].ledger->session()), Invariant::I12,
              "a request waits whose session is not admitted");
    }
    const auto check_running = [this](const Ledger& ledger) {
        check(sessions.admitted(ledger.session()), Invariant::I12, "a request runs whose session is not admitted");
    };
    for (std::int32_t i = 0; i < prefilling.size(); ++i) {
        check_running(*prefilling[prefilling.seat(i)].ledger);
    }
    for (std::int32_t i = 0; i < decoding.size(); ++i) {
        check_running(*decoding[decoding.seat(i)].ledger);
    }
    const Account total = sessions.total();
    check(total.prefill_ns + total.decode_ns == counters.device_ns, Invariant::I13,
          "the accounts of sessions disagree with the time of steps");
}

}  // namespace tokenspeed
