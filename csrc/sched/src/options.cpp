// SPDX-License-Identifier: MIT
#include "sched/options.h"

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

}  // namespace tokenspeed
