// SPDX-License-Identifier: MIT
#include "sched/accounts.h"

#include <algorithm>

namespace tokenspeed {

void Account::add(const Account& other) {
    prefill_ns += other.prefill_ns;
    decode_ns += other.decode_ns;
    queue_us += other.queue_us;
    requests += other.requests;
    tokens_prompt += other.tokens_prompt;
    tokens_cached += other.tokens_cached;
    tokens_computed += other.tokens_computed;
    tokens_output += other.tokens_output;
    for (std::size_t i = 0; i < kTiers; ++i) {
        block_us[i] += other.block_us[i];
    }
}

void divide(std::int64_t step_ns, const StepCost& prices, std::span<const RowWork> rows,
            std::span<std::int64_t> shares_ns) {
    if (rows.empty()) {
        return;
    }
    const auto weight = [&prices, base = prices.base_us / static_cast<double>(rows.size())](const RowWork& row) {
        if (row.decode) {
            return base + prices.row_us + prices.context_us * (row.start + 1.0);
        }
        const double length = row.length;
        return base + prices.token_us * length +
               prices.pair_us * length * (row.start + (length + 1) / 2);
    };
    double total = 0;
    for (const RowWork& row : rows) {
        total += weight(row);
    }
    const double scale = total > 0 ? static_cast<double>(step_ns) / total : 0;
    std::int64_t rest = step_ns;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        shares_ns[i] = std::min(rest, static_cast<std::int64_t>(weight(rows[i]) * scale));
        rest -= shares_ns[i];
    }
    shares_ns[rows.size() - 1] += rest;  // what rounding left
}

}  // namespace tokenspeed
