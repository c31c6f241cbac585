// SPDX-License-Identifier: MIT
// Work: what a step has to do, in the counts its time depends on. StepCost: the price of each.
//
//   step_us = base + row * decode rows + context * tokens of KV that decode rows read
//           + token * prefill tokens + pair * (prefill token, token it attends to) pairs
//
// A token attends to itself too. Linear, so that a step's time can be divided among its rows, and the length
// of a chunk that fits a time has a closed form.
#pragma once

#include <cstdint>

namespace tokenspeed {

struct Work {
    std::int32_t decode_rows = 0;
    std::int64_t context_tokens = 0;
    std::int64_t prefill_tokens = 0;
    std::int64_t prefill_pairs = 0;

    void add_decode(std::int64_t context) {
        ++decode_rows;
        context_tokens += context;
    }
    // `length` tokens after `start` tokens of context.
    void add_chunk(std::int64_t start, std::int64_t length) {
        prefill_tokens += length;
        prefill_pairs += length * start + length * (length + 1) / 2;
    }
};

struct StepCost {
    double base_us = 0;
    double row_us = 0;
    double context_us = 0;
    double token_us = 0;
    double pair_us = 0;

    [[nodiscard]] double operator()(const Work& work) const {
        return base_us + row_us * work.decode_rows + context_us * static_cast<double>(work.context_tokens) +
               token_us * static_cast<double>(work.prefill_tokens) +
               pair_us * static_cast<double>(work.prefill_pairs);
    }
};

}  // namespace tokenspeed
