// SPDX-License-Identifier: MIT
#include "sched/options.h"

#include <array>
#include <cstdio>

#include "kv/pool.h"

namespace tokenspeed {

std::string Options::fault() const {
    const auto below = [](const char* name, std::int32_t value, std::int32_t least) {
        std::string text;
        if (value < least) {
            text.append(name).append(" is ").append(std::to_string(value));
            text.append("; the least is ").append(std::to_string(least));
        }
        return text;
    };
    const auto above = [](const char* name, std::int32_t value, std::int32_t most) {
        std::string text;
        if (value > most) {
            text.append(name).append(" is ").append(std::to_string(value));
            text.append("; the most is ").append(std::to_string(most));
        }
        return text;
    };
    const std::string faults[] = {
        below("blocks_total", blocks_total, 1),
        below("block_tokens", block_tokens, 1),
        below("slots_max", slots_max, 1),
        below("rows_per_step_max", rows_per_step_max, 1),
        below("tokens_per_step_max", tokens_per_step_max, rows_per_step_max),
        below("prefill_tokens_max", prefill_tokens_max, 1),
        below("waiting_max", waiting_max, 1),
        below("context_tokens_max", context_tokens_max, 2),
        below("log_bytes", log_bytes, 1024),
        below("floor_mtps", floor_mtps, 0),
        below("host_blocks", host_blocks, 0),
        below("disk_blocks", disk_blocks, 0),
        below("copies_per_step_max", copies_per_step_max, 1),
        below("sessions_max", sessions_max, 1),
        below("door_max", door_max, 1),
        below("session_tokens", session_tokens, 0),
        above("blocks_total", blocks_total, Pool::kBlocksMost),
        above("host_blocks", host_blocks, Pool::kBlocksMost),
        above("disk_blocks", disk_blocks, Pool::kBlocksMost),
    };
    for (const std::string& each : faults) {
        if (!each.empty()) {
            return each;
        }
    }
    return {};
}

std::string Options::text() const {
    std::string text;
    const auto add = [&](const char* name, const std::string& value) {
        text.append(name).append("=").append(value).append("\n");
    };
    const auto number = [&](const char* name, auto value) { add(name, std::to_string(+value)); };
    number("blocks_total", blocks_total);
    number("block_tokens", block_tokens);
    number("slots_max", slots_max);
    number("tokens_per_step_max", tokens_per_step_max);
    number("rows_per_step_max", rows_per_step_max);
    number("prefill_tokens_max", prefill_tokens_max);
    number("waiting_max", waiting_max);
    number("context_tokens_max", context_tokens_max);
    number("prefix_cache", prefix_cache);
    number("overlap", overlap);
    number("log_bytes", log_bytes);
    number("seed", seed);
    number("floor", floor);
    number("session_admission", session_admission);
    number("fair_share", fair_share);
    number("retention", retention);
    number("tiers", tiers);
    number("floor_mtps", floor_mtps);
    std::string prices;
    for (const double price : {cost.base_us, cost.row_us, cost.context_us, cost.token_us, cost.pair_us}) {
        std::array<char, 40> exact{};
        (void)std::snprintf(exact.data(), exact.size(), "%s%a", prices.empty() ? "" : ",", price);
        prices += exact.data();
    }
    add("cost", prices);
    number("cost_exact", cost_exact);
    number("host_blocks", host_blocks);
    number("disk_blocks", disk_blocks);
    number("copies_per_step_max", copies_per_step_max);
    number("copy_late_us", copy_late_us);
    number("stamps", stamps);
    number("sessions_max", sessions_max);
    number("door_max", door_max);
    number("session_tokens", session_tokens);
    number("session_aging_us", session_aging_us);
    number("session_idle_us", session_idle_us);
    return text;
}

}  // namespace tokenspeed
