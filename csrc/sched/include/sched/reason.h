// SPDX-License-Identifier: MIT
// Reason: why a decision was taken, one code per kind of decision, recorded in the event log with its subject.
#pragma once

#include <cstdint>

namespace tokenspeed {

enum class Reason : std::uint8_t {
    none = 0,
    // a submission is refused
    queue_full = 1,  // as many requests wait as may
    door_full = 2,   // as many requests of sessions that are not admitted wait as may
    // a request waits; the event names the first of those waiting
    no_slot = 16,
    no_blocks = 17,
    no_room = 18,     // for its table in this plan
    floor_full = 19,  // with it, the worst step to come would break somebody's floor
    at_door = 20,     // its session is not admitted
    // a step is smaller than it could be
    least_slack = 32,  // the next token of somebody is due
    // a request leaves before its end
    retracted = 48,          // an earlier request needs its blocks
    deadline_passed = 49,    // it had not begun by its deadline
    floor_unreachable = 50,  // it runs without a floor: not even alone would its steps keep it
    // sessions; the event names the root
    session_admitted = 64,
    session_aged = 65,   // admitted over the budget: it has waited for its aging bound
    session_final = 66,  // its caller said that its last request has ended
    session_closed = 67,
    session_spared = 69,  // admitted over the budget: the device has time to spare
    session_idle = 68,  // it gives way to one that waits
    // KV between tiers
    fetched = 96,      // a waiting request's history comes up; blocks
    fetch_late = 97,   // it waited for it long enough
    quarantined = 98,  // a block does not hold what was stored; its tier
};

}  // namespace tokenspeed
