// SPDX-License-Identifier: MIT
// Policy: what the planner decides, as pure functions of plain values. Change a policy here; it touches no
// state.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/plant.h"
#include "request/ledger.h"

namespace tokenspeed::policy {

// First come, first served by one sequence. A unit of priority is worth a fixed number of places in the
// queue, so no request is overtaken for ever: aging is bounded by construction.
inline constexpr std::int64_t kPlacesPerPriority = 64;
inline constexpr std::int32_t kPriorityMost = 8;

constexpr Rank rank(std::int64_t sequence, std::int32_t priority) {
    const std::int64_t places = kPlacesPerPriority * std::clamp(priority, -kPriorityMost, kPriorityMost);
    return {sequence - places, sequence};
}

// The same in shares of the device: a place is what a request is taken to cost.
constexpr Rank fair_rank(std::int64_t key_ns, std::int64_t place_ns, std::int64_t sequence, std::int32_t priority) {
    const std::int64_t places = kPlacesPerPriority * std::clamp(priority, -kPriorityMost, kPriorityMost);
    return {key_ns - places * place_ns, sequence};
}

// A deadline makes a request as urgent as some priority, the more the nearer it is.
constexpr std::int32_t urgency(std::int32_t priority, std::uint64_t deadline_us, std::uint64_t now_us) {
    if (deadline_us == 0) {
        return priority;
    }
    const std::uint64_t left_us = deadline_us > now_us ? deadline_us - now_us : 0;
    const std::int32_t near = left_us < 1'000'000 ? 4 : left_us < 10'000'000 ? 2 : left_us < 60'000'000 ? 1 : 0;
    return std::clamp(priority, -kPriorityMost, kPriorityMost) + near;
}

// Output that a decoding request is taken to add to its context: more than most answers have.
constexpr std::int32_t kGrowthTokens = 2048;
// Context of a request at its worst, as far as admission looks.
constexpr std::int32_t context_at_worst(std::int32_t tokens_known, std::int32_t output_tokens,
                                        std::int32_t tokens_max) {
    return tokens_known + std::clamp(tokens_max - output_tokens, 0, kGrowthTokens);
}

// Share of the time between two tokens that decode rows may take at their worst: the rest is for prompts, or
// no first token would ever come.
constexpr double kDecodeShare = 0.9;
// Up to this share of the device in use, it has time for a session more than there is KV for.
constexpr double kBusyShare = 0.8;

// While the first of those waiting has waited longer, no further session is admitted: there is KV for it, but not
// enough of the device.
constexpr std::uint64_t kTurnWaitMostUs = 4'000'000;

// A chunk smaller than this is not worth a row, unless it is the last of its prompt.
constexpr std::int32_t kChunkLeast = 16;
// Plans in a row that may leave prompts no time; then one block of a prompt goes before the floor.
constexpr std::int32_t kPlansStarved = 8;

// A chunk of at most `room` tokens that ends at a block's end where it can; 0: not worth a row.
constexpr std::int32_t chunk_of(std::int32_t planned, std::int32_t remaining, std::int32_t room,
                                std::int32_t block_tokens) {
    if (room >= remaining) {
        return remaining;
    }
    const std::int32_t aligned = (planned + room) / block_tokens * block_tokens - planned;
    if (aligned > 0) {
        return aligned;
    }
    return room >= std::min(kChunkLeast, block_tokens) ? room : 0;
}

constexpr std::int32_t blocks_for(std::int64_t tokens, std::int32_t block_tokens) {
    return static_cast<std::int32_t>((tokens + block_tokens - 1) / block_tokens);
}

// KV positions that a request can come to need: its last token is never computed.
constexpr std::int64_t context_needed(std::int32_t prompt_tokens, std::int32_t tokens_max) {
    return static_cast<std::int64_t>(prompt_tokens) + tokens_max - 1;
}

// Full blocks that a prefix hit may cover: the last known token is always computed, to have something to
// sample from.
constexpr std::int32_t hit_blocks_max(std::int32_t tokens_known, std::int32_t block_tokens) {
    if (planted(Plant::last_token_cached)) {
        return tokens_known / block_tokens;
    }
    return (tokens_known - 1) / block_tokens;
}

// Blocks that an admission leaves for those that run: each may need one soon, and a request admitted only to
// be retracted a step later is work thrown away.
constexpr std::int32_t blocks_reserved(std::int32_t requests_running) { return requests_running; }
// With a floor, none of them may be sent back: each keeps what most answers come to need.
constexpr std::int32_t blocks_reserved_for_floor(std::int32_t requests_running, std::int32_t block_tokens) {
    return requests_running * blocks_for(kGrowthTokens / 2, block_tokens);
}

// Rows of a step that decode may take while a prompt waits for its next chunk.
constexpr std::int32_t decode_rows_max(std::int32_t rows_per_step_max, bool prefill_waits) {
    return prefill_waits ? std::max(1, rows_per_step_max - 1) : rows_per_step_max;
}

// How a sampled token ends its request, `none` where it does not. It is output token number `produced` (from
// 1).
inline FinishReason judge(const Ask& ask, std::int32_t produced, std::int32_t token) {
    const bool may_stop = produced >= ask.tokens_min;
    if (may_stop && std::ranges::find(ask.stop_ids, token) != ask.stop_ids.end()) {
        return FinishReason::stop;
    }
    const std::int32_t most = ask.tokens_max + (planted(Plant::length_overrun) ? 1 : 0);
    return produced >= most ? FinishReason::length : FinishReason::none;
}

// May a further sample be asked for, with `in_flight` of them not yet back?
constexpr bool may_sample(const Ask& ask, std::int32_t produced, std::int32_t in_flight) {
    return produced + in_flight < ask.tokens_max + (planted(Plant::length_overrun) ? 1 : 0);
}

}  // namespace tokenspeed::policy
