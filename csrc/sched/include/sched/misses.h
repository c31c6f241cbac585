// SPDX-License-Identifier: MIT
// Misses: why a request's prompt was not found further, and from which token on.
//
//   the session's last prompt   h0 h1 h2 h3 h4          h: 32 bits of a block's chained hash
//   this prompt                 h0 h1 h2 x3 x4 x5       equal at i: equal before it, so a binary search finds x3
//   found in the cache          h0 h1                   h2 was there once: evicted; then x3: rewritten
//
// In: admissions. Out: a reason and the first token that had to be computed, to a block's precision. Remembers 4 bytes
// a block of each session's last prompt, as many as the device has blocks; the session that came first is forgotten
// first.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/hash.h"
#include "request/ledger.h"

namespace tokenspeed {

enum class MissReason : std::uint8_t {
    none = 0,           // all that could be found was
    fresh = 1,          // it is new: nobody of this session has said it before
    rewritten = 2,      // it differs from what the session said there: an edit, or a template that rewrites
    volatile_line = 3,  // it differs where it differed the last time
    evicted = 4,        // it was computed once, and had to give way
};

class Misses {
 public:
    struct Miss {
        MissReason reason = MissReason::none;
        std::int32_t block = 0;  // the first that was not found
    };

    Misses(std::int32_t sessions_max, std::int32_t blocks_total)
        : sessions_max_(static_cast<std::size_t>(sessions_max)), words_max_(static_cast<std::size_t>(blocks_total)) {}

    // The request is admitted with `found` blocks of `hashes`, which it could have found all.
    Miss judge(SessionId session, std::span<const Hash128> hashes, std::int32_t found);

 private:
    struct Memory {
        std::vector<std::uint32_t> chain;
        std::int32_t differed = -1;  // where the last prompt differed from the one before
    };

    void remember(SessionId session, Memory& memory, std::span<const Hash128> hashes, std::size_t same);

    std::size_t sessions_max_;
    std::size_t words_max_;
    std::size_t words_ = 0;
    std::unordered_map<SessionId, Memory> memories_;
    std::vector<SessionId> order_;  // a queue from `oldest_` on
    std::size_t oldest_ = 0;
};

}  // namespace tokenspeed
