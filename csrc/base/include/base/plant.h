// SPDX-License-Identifier: MIT
// Planted bugs for the mutation test: built with -DTOKENSPEED_PLANT=<n>, exactly one defect is compiled in.
// 0 is the product. Each plant is a mistake someone could make; the simulator must catch every one of them.
#pragma once

#ifndef TOKENSPEED_PLANT
#define TOKENSPEED_PLANT 0
#endif

namespace tokenspeed {

inline constexpr int kPlant = TOKENSPEED_PLANT;

enum class Plant : int {
    none = 0,
    dropped_use = 1,         // a prefix hit does not count as a use of the path
    freed_in_flight = 2,     // the blocks of a request cancelled in flight are freed at once
    unsalted_hash = 3,       // the hash chain ignores the tenant salt
    double_finish = 4,       // a request that stops is reported finished twice
    last_token_cached = 5,   // a prefix hit may cover the whole prompt; the last token rewrites a frozen block
    dropped_delta = 6,       // now and then the table delta of a new block is not sent
    lost_wakeup = 7,         // a retiring step does not wake the blocked request
    partial_freeze = 8,      // a block is frozen one token before it is full
    parent_evicted = 9,      // eviction takes the parent of the oldest leaf
    starved_row = 10,        // one decoding request in five is never planned after its first token
    unordered_commit = 11,   // a result is accepted before that of an older step
    unchained_hash = 12,     // the hash of a block ignores what came before it
    unsent_redirect = 13,    // a duplicate block is given back, the table still names it
    lost_token = 14,         // the sample of a retracted request joins its context but is never emitted
    length_overrun = 15,     // one token more than asked for is produced
    slot_reused_early = 16,  // the slot of a request that ended in flight is free at once
};

inline constexpr int kPlantLast = static_cast<int>(Plant::slot_reused_early);
static_assert(kPlant >= 0 && kPlant <= kPlantLast, "unknown TOKENSPEED_PLANT");

#ifdef TOKENSPEED_PLANTS
inline int plant_in_effect = kPlant;  // a test build holds every plant; _control.plant(n) chooses one
constexpr bool planted(Plant plant) { return plant != Plant::none && plant_in_effect == static_cast<int>(plant); }
#else
constexpr bool planted(Plant plant) { return kPlant == static_cast<int>(plant); }
#endif

}  // namespace tokenspeed
