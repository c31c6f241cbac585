// SPDX-License-Identifier: MIT
// Ledger: what a request asked for and every token it knows: the prompt, then the output so far. Owns no KV.
// Its block hashes are computed once, when they are first known, and live as long as the request.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bounded.h"
#include "base/hash.h"
#include "base/ids.h"
#include "request/pace.h"

namespace tokenspeed {

// The one order of requests: admission takes the least rank, retraction the greatest. `key` falls behind
// `sequence` by what the priority is worth (sched/policy.h), so two ranks never tie.
struct Rank {
    std::int64_t key = 0;
    std::int64_t sequence = 0;
    friend auto operator<=>(const Rank&, const Rank&) = default;
};

enum class FinishReason : std::uint8_t { none = 0, stop = 1, length = 2, cancelled = 3, error = 4, deadline = 5 };

// What a caller may ask; tokens_max and tokens_min count output tokens.
struct Ask {
    std::int32_t tokens_max = 0;
    std::int32_t tokens_min = 0;
    std::vector<std::int32_t> stop_ids;
};

// Whose request it is, what it was promised, and what its caller knows of what comes after it.
struct Terms {
    SessionId session{};            // none: the request is a session of its own
    SessionId root{};               // the session that this one is a sub-agent of; none: it is its own root
    TenantId tenant{};
    std::int32_t floor_mtps = 0;    // least rate of its output, in thousandths of a token per second; 0: none
    std::uint64_t deadline_us = 0;  // of no use if it has not begun by then; 0: none
    std::uint64_t retain_us = 0;    // wished stay of its KV after it ends: a lower bound, priced
    bool final = false;             // no further request of its session will come
};

// The record that the scheduler keeps of a session; the same as long as a request of it lives.
using SessionIndex = Id<struct SessionIndexTag, std::int32_t>;
inline constexpr SessionIndex kNoSession{-1};

class Ledger {
 public:
    Ledger(RequestId id, Rank rank, Ask ask, std::span<const std::int32_t> prompt, std::uint64_t arrival_us,
           const Terms& terms = {});

    [[nodiscard]] RequestId id() const { return id_; }
    [[nodiscard]] Rank rank() const { return rank_; }
    [[nodiscard]] const Ask& ask() const { return ask_; }
    [[nodiscard]] const Terms& terms() const { return terms_; }
    [[nodiscard]] std::uint64_t arrival_us() const { return arrival_us_; }
    [[nodiscard]] std::span<const std::int32_t> tokens() const { return tokens_; }
    [[nodiscard]] std::int32_t tokens_known() const { return count_of(tokens_); }
    [[nodiscard]] std::int32_t prompt_tokens() const { return prompt_tokens_; }
    [[nodiscard]] std::int32_t output_tokens() const { return tokens_known() - prompt_tokens_; }

    void append(std::int32_t token) { tokens_.push_back(token); }
    [[nodiscard]] const Pace& pace() const { return pace_; }
    void set_pace(const Pace& pace) { pace_ = pace; }
    [[nodiscard]] SessionIndex session() const { return session_; }
    void set_session(SessionIndex session) { session_ = session; }
    // Extend the chain of hashes to every full block of known tokens.
    void hash_blocks(HashKey key, Hash128 root, std::int32_t block_tokens);
    // The hash of full block `i`, extending the chain where it ends before.
    Hash128 block_hash(HashKey key, std::int32_t block_tokens, std::int32_t i);
    [[nodiscard]] std::span<const Hash128> block_hashes() const { return hashes_; }

 private:
    RequestId id_;
    Rank rank_;
    Ask ask_;
    Terms terms_;
    SessionIndex session_ = kNoSession;
    Pace pace_;  // while the request does not decode
    std::uint64_t arrival_us_;
    std::int32_t prompt_tokens_;
    std::vector<std::int32_t> tokens_;
    Hash128 root_;
    std::vector<Hash128> hashes_;
};

}  // namespace tokenspeed
