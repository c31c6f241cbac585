// SPDX-License-Identifier: MIT
// Planted bugs for the mutation test. A build with TOKENSPEED_PLANTS holds them all and has one in effect,
// chosen at run time (_control.plant); the product holds none. Each is a mistake someone could make; the
// simulator must catch it.
#pragma once

namespace tokenspeed {

enum class Plant : int {
    none = 0,
    dropped_use = 1,        // a prefix hit does not count as a use of the path
    freed_in_flight = 2,    // the blocks of a request cancelled in flight are freed at once
    unsalted_hash = 3,      // the hash chain ignores the tenant salt
    double_finish = 4,      // a request that stops is reported finished twice
    last_token_cached = 5,  // a prefix hit may cover the whole prompt; the last token rewrites a frozen block
    dropped_delta = 6,      // now and then the table delta of a new block is not sent
    lost_wakeup = 7,        // a retiring step does not wake the blocked request
    partial_freeze = 8,     // a block is frozen one token before it is full
    parent_evicted = 9,     // eviction takes the parent of the oldest leaf
    starved_row = 10,       // one decoding request in five is never planned after its first token
    unordered_commit = 11,  // a result is accepted before that of an older step
    unchained_hash = 12,    // the hash of a block ignores what came before it
    unsent_redirect = 13,   // a duplicate block is given back, the table still names it
    lost_token = 14,        // the sample of a retracted request joins its context but is never emitted
    length_overrun = 15,    // one token more than asked for is produced
    slot_reused_early = 16,  // the slot of a request that ended in flight is free at once
};

#ifdef TOKENSPEED_PLANTS
inline Plant plant_in_effect = Plant::none;
constexpr bool planted(Plant plant) { return plant != Plant::none && plant == plant_in_effect; }
#else
constexpr bool planted(Plant /*plant*/) { return false; }
#endif

}  // namespace tokenspeed
