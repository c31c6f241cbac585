// SPDX-License-Identifier: MIT
// Account: what a session, a tenant or everybody has used, in plain sums. divide(): a step's time among its rows.
//
// Every nanosecond of a step that somebody measured is in exactly one account, so accounts sum to the steps.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kv/transfer.h"
#include "sched/step_cost.h"

namespace tokenspeed {

inline constexpr std::size_t kTiers = 3;

struct Account {
    std::int64_t prefill_ns = 0;
    std::int64_t decode_ns = 0;
    std::int64_t queue_us = 0;
    std::int64_t requests = 0;
    std::int64_t tokens_prompt = 0;   // known tokens of requests when they were admitted
    std::int64_t tokens_cached = 0;   // of these, not computed again
    std::int64_t tokens_computed = 0; // prefill tokens
    std::int64_t tokens_output = 0;
    std::array<std::int64_t, kTiers> block_us{};  // blocks held, times how long

    void add(const Account& other);
};

// Blocks held from `since_us` on.
struct Holding {
    std::int64_t blocks = 0;
    std::uint64_t since_us = 0;

    // The block-us since it last changed; from now on there are `more`.
    std::int64_t change(std::int64_t more, std::uint64_t now_us) {
        const std::int64_t passed_us = now_us > since_us ? static_cast<std::int64_t>(now_us - since_us) : 0;
        const std::int64_t used = blocks * passed_us;
        since_us = now_us > since_us ? now_us : since_us;
        blocks += more;
        return used;
    }
};

// What a row has to do with the time of its step: one decode token after `start` tokens, or a chunk.
struct RowWork {
    std::int32_t start;
    std::int32_t length;
    bool decode;
};

// Divide `step_ns` among rows by what the prices say each took; the base in equal parts. The shares sum to it.
void divide(std::int64_t step_ns, const StepCost& prices, std::span<const RowWork> rows,
            std::span<std::int64_t> shares_ns);

}  // namespace tokenspeed
