// SPDX-License-Identifier: MIT
// Holdings: everything a scheduler owns, in one account: blocks, slots, requests by state, steps in flight.
// Keeps the moves that both planning and committing make (release, retract, look up); decides nothing.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "kv/pool.h"
#include "kv/prefix_tree.h"
#include "request/slot.h"
#include "request/states.h"
#include "sched/cost_model.h"
#include "sched/event_log.h"
#include "sched/fair_share.h"
#include "sched/in_flight.h"
#include "sched/misses.h"
#include "sched/options.h"
#include "sched/reason.h"
#include "sched/retention.h"
#include "sched/roster.h"
#include "sched/sessions.h"
#include "sched/sharing.h"
#include "sched/tiers.h"

namespace tokenspeed {

enum class StateKind : std::uint8_t { at_door, waiting, prefilling, decoding };

struct Place {
    StateKind kind;
    Seat seat;
};

// The launched steps that have not retired, oldest first; at most two.
class Flights {
 public:
    [[nodiscard]] std::int32_t size() const { return size_; }
    [[nodiscard]] bool empty() const { return size_ == 0; }
    InFlight& operator[](std::int32_t i) { return steps_[static_cast<std::size_t>(head_ + i) % 2]; }
    const InFlight& operator[](std::int32_t i) const {
        return steps_[static_cast<std::size_t>(head_ + i) % 2];
    }
    InFlight& newest() { return (*this)[size_ - 1]; }
    // The step being planned: rows enter it, launch() makes it the newest.
    InFlight& next() { return (*this)[size_]; }
    void launch(StepId step, const Work& work, std::uint64_t planned_us) {
        next().launch(step, work, planned_us);
        ++size_;
    }
    // The oldest step leaves the queue; it still holds its leases until it retires.
    InFlight& take_oldest() {
        InFlight& oldest = (*this)[0];
        head_ = (head_ + 1) % 2;
        --size_;
        return oldest;
    }
    void swap_order() { std::swap(steps_[0], steps_[1]); }

 private:
    std::array<InFlight, 2> steps_;
    std::int32_t head_ = 0;
    std::int32_t size_ = 0;
};

struct Counters {
    std::int64_t accepted = 0;
    std::int64_t finished = 0;
    std::int64_t steps = 0;
    std::int64_t rows = 0;
    std::int64_t tokens_computed = 0;
    std::int64_t tokens_sampled = 0;
    std::int64_t tokens_queried = 0;  // known tokens of admitted requests
    std::int64_t tokens_hit = 0;      // of these, found in the prefix tree
    std::int64_t retractions = 0;
    std::int64_t blocks_deduplicated = 0;
    std::int64_t blocks_corrupt = 0;  // of the device
    std::int64_t scrubs = 0;          // times that quarantined blocks were given another chance
    std::int64_t results_late = 0;  // rows of results that nobody waited for
    std::uint64_t queue_us = 0;     // arrival to first admission, summed
    std::int64_t device_ns = 0;     // what steps took, where that was measured
    std::int64_t deadlines_passed = 0;
};

struct Holdings {
    explicit Holdings(const Options& options);

    // Blocks that can be had now: free ones and those that eviction frees.
    [[nodiscard]] std::int32_t blocks_available() const {
        return pool.blocks_in(BlockState::free) + tree.evictable();
    }
    [[nodiscard]] std::int32_t requests_running() const { return prefilling.size() + decoding.size(); }
    [[nodiscard]] bool flights_hold() const;
    // A block from the pool, evicting where it is empty.
    std::optional<BlockLease> try_block();

    // The one place where a message from outside meets a request; nothing is a normal answer.
    [[nodiscard]] std::optional<Place> find(RequestId id) const;
    Residence* residence(Place place);
    [[nodiscard]] const Ledger& ledger(Place place) const;

    template <class State>
    Seat enter(State&& state);

    // Leavings go to the newest step in flight, which may still touch them, or back at once.
    void release(Residence&& leavings, SessionIndex session);
    void release(BlockLease&& duplicate);
    void retract(Place place);
    // The memory of a frozen block does not hold what was stored: who runs on it is sent back, nobody finds it again.
    void quarantine(BlockId block);
    // What does not fit, with nothing in flight and no more than `running` requests, never will: quarantined blocks get
    // another chance.
    bool scrub_if_stuck(std::int32_t running);
    // Capacity came free: a blocked request may look again.
    void wake() { blocked = false; }
    // The first of those waiting cannot run, until capacity comes free.
    void block(RequestId id, Reason reason);
    // When the device will have done what was launched, at the latest expected; now, where it is idle.
    [[nodiscard]] double device_free_us() const;

    // Assert I1-I10 over the whole account.
    void check_all(const Options& options, StepId step_last) const;

    void check_sessions() const;

    // A duplicate block was found: the table entry changes with the next plan.
    struct PendingRedirect {
        SlotId slot;
        std::int32_t index;
        BlockId block;
    };

    // The time of the events that follow; 0 says nothing, and it never goes back.
    void at(std::uint64_t now) {
        if (now > now_us) {
            now_us = now;
            tree.at(now);
            tiers.at(now);
        }
    }

    EventLog log;
    Retention retention;
    Misses misses;
    // Order matters: what holds leases dies before what they lease from.
    Pool pool;
    PrefixTree tree;
    SlotPool slots;
    Roster<AtDoor> door;  // their session is not admitted
    Roster<Waiting> waiting;
    Roster<Prefilling> prefilling;
    Roster<Decoding> decoding;
    std::unordered_map<RequestId, Place> places;
    Flights flights;
    std::vector<PendingRedirect> redirects;
    struct Frozen {
        BlockId block;
        Hash128 hash;
    };
    std::vector<Frozen> frozen;  // since the last plan, where stamps are kept
    Sharing sharing;
    Sessions sessions;
    FairShare share;
    CostModel cost;
    std::uint64_t now_us = 0;          // the latest time that an event told
    std::uint64_t retired_us = 0;      // of the last commit
    std::uint64_t deadline_us = ~0ULL; // the first of those that have not begun
    bool blocked = false;  // the first of those waiting did not fit, and no capacity came free since
    Counters counters;
    Tiers tiers;  // last: its transfers hold paths and blocks
};

template <class State>
Seat Holdings::enter(State&& state) {
    const RequestId id = state.ledger->id();
    if constexpr (std::is_same_v<State, AtDoor>) {
        const Seat seat = door.insert(std::move(state));
        places.insert_or_assign(id, Place{StateKind::at_door, seat});
        return seat;
    } else if constexpr (std::is_same_v<State, Waiting>) {
        const Seat seat = waiting.insert(std::move(state));
        places.insert_or_assign(id, Place{StateKind::waiting, seat});
        return seat;
    } else if constexpr (std::is_same_v<State, Prefilling>) {
        const Seat seat = prefilling.insert(std::move(state));
        places.insert_or_assign(id, Place{StateKind::prefilling, seat});
        return seat;
    } else {
        const Seat seat = decoding.insert(std::move(state));
        places.insert_or_assign(id, Place{StateKind::decoding, seat});
        return seat;
    }
}

}  // namespace tokenspeed
