// SPDX-License-Identifier: MIT
// Options: the budgets of a scheduler. Plain values; everything it decides follows from these and its events.
#pragma once

#include <cstdint>
#include <string>

#include "base/hash.h"
#include "sched/step_cost.h"

namespace tokenspeed {

struct Options {
    std::int32_t blocks_total = 0;
    std::int32_t block_tokens = 0;
    std::int32_t slots_max = 0;  // requests that run at once
    std::int32_t tokens_per_step_max = 0;
    std::int32_t rows_per_step_max = 0;
    std::int32_t prefill_tokens_max = 0;  // prefill tokens of one step
    std::int32_t waiting_max = 0;
    std::int32_t context_tokens_max = 0;  // prompt and output of one request
    bool prefix_cache = true;
    bool overlap = false;  // plan a step while the one before it is in flight
    // Leading blocks that rows must have in common before a kernel is told: below, merging two partial results
    // costs more than reading the blocks twice.
    std::int32_t shared_blocks_min = 8;
    HashKey hash_key{};
    std::int32_t log_bytes = 1 << 20;
    bool journal = false;  // keep every event, and what replay needs, until somebody takes it
    std::uint64_t seed = 0;  // names the run in logs and failures

    // Policies: with all of them off, requests run first come, first served, over an LRU of blocks.
    bool floor = false;              // keep everybody's floor: size steps by slack, admit by the worst step
    bool session_admission = false;  // admit sessions, not requests, to the KV there is
    bool fair_share = false;         // order requests by what their tenants have used
    bool retention = false;          // keep idle KV by how likely its session is to come back
    bool tiers = false;              // move idle KV to the host and to disk
    std::int32_t floor_mtps = 0;     // of requests that name none; thousandths of a token per second
    // What a step takes: exact where somebody knows, else where the fit begins.
    StepCost cost{};
    bool cost_exact = false;
    std::int32_t host_blocks = 0;  // blocks of the host tier
    std::int32_t disk_blocks = 0;
    bool stamps = false;           // tell the executor what each cached block should hold (Plan.frozen_names)
    std::int32_t copies_per_step_max = 256;  // blocks that one plan moves between tiers
    std::uint64_t copy_late_us = 1'000'000;  // a request waits no longer for its KV to be fetched
    std::int32_t sessions_max = 4096;  // sessions remembered
    std::int32_t door_max = 1024;      // requests that wait for their session to be admitted
    // KV that a session is expected to come to need; 0: learned from sessions that ended.
    std::int32_t session_tokens = 0;
    std::uint64_t session_aging_us = 600'000'000;  // no session waits longer for its admission
    std::uint64_t session_idle_us = 600'000'000;   // an admitted session idle for so long gives way

    [[nodiscard]] std::int32_t steps_in_flight_max() const { return overlap ? 2 : 1; }
    // The longest table there can be.
    [[nodiscard]] std::int32_t blocks_per_context() const {
        return (context_tokens_max + block_tokens - 1) / block_tokens;
    }
    // Table entries one plan can carry: what commits may redirect and decode rows grow, and at least one
    // whole table.
    [[nodiscard]] std::int32_t deltas_kept() const {
        return 2 * (tokens_per_step_max / block_tokens + rows_per_step_max);
    }
    [[nodiscard]] std::int32_t deltas_per_step_max() const {
        return deltas_kept() + rows_per_step_max + 4 * blocks_per_context();
    }
    // Rows one outcome can carry: those of a step, and every request that could be cancelled before it.
    [[nodiscard]] std::int32_t outcomes_max() const {
        return 2 * rows_per_step_max + 2 * slots_max + 2 * waiting_max;
    }
    // As lines of name=value, by which another run can be given them; without the key of hashes.
    [[nodiscard]] std::string text() const;
    // What is wrong with these options; empty where nothing is.
    [[nodiscard]] std::string fault() const;
};

}  // namespace tokenspeed
