// SPDX-License-Identifier: MIT
// CostModel: what a step will take, learned from the steps that retired.
//
//   Work --> prices (StepCost) --> x scale of its bucket --> predict() --> x (1 + margin of its bucket) --> upper()
//
// In: work and measured microseconds. Out: an expectation, an upper bound, and the chunk that fits a time. The
// prices of all steps are one non-negative least squares fit of relative errors, with forgetting, drawn towards
// the prior where the steps say nothing; a bucket (steps of only decode rows by the size of their graph, steps
// with prefill) keeps its own ratio to it and its own quantile of what exceeds it. A step that is late for
// reasons of its own has a bounded weight. Exact prices are taken as they are, and nothing is added to them.
// Decides nothing, reads no clock; costs about a microsecond per step, whatever the step.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "sched/options.h"
#include "sched/step_cost.h"

namespace tokenspeed {

class CostModel {
 public:
    explicit CostModel(const Options& options);

    // A step of `work` took `step_us` on the device, and `elapsed_us` from when it could begin to its commit.
    void learn(const Work& work, double step_us, double elapsed_us);

    [[nodiscard]] double predict(const Work& work) const;
    // What all but one step in forty stay below, the host's part included.
    [[nodiscard]] double upper(const Work& work) const;
    // The longest chunk after `start` tokens of context that, added to `work`, stays within `budget_us`.
    [[nodiscard]] std::int32_t tokens_within(const Work& work, std::int32_t start, double budget_us) const;

    [[nodiscard]] StepCost prices() const;
    // What all but one step in a hundred stay below, of |taken / predicted - 1|.
    [[nodiscard]] double error_p99() const { return error_.value; }
    [[nodiscard]] std::int64_t steps_learned() const { return steps_; }

 private:
    static constexpr std::size_t kPrices = 5;
    static constexpr std::size_t kDecodeBuckets = 13;  // by rows: 1, 2, 3-4, 5-8, ... 2049-4096
    using Vector = std::array<double, kPrices>;

    // A quantile that follows its stream: up by `share` of a stride where it was exceeded, else down by the rest.
    struct Quantile {
        double value;
        std::int64_t seen = 0;
        void add(double sample, double share, double stride_least);
    };
    struct Bucket {
        double scale = 1;
        Quantile margin{0.1};
    };

    [[nodiscard]] static std::size_t bucket_of(const Work& work);
    [[nodiscard]] Vector priced(const Work& work) const;
    void fit(const Vector& shares, double weight);

    bool exact_;
    Vector prior_;
    Vector theta_;  // prices, as multiples of the prior
    std::array<Vector, kPrices> gram_{};
    Vector target_{};
    std::array<Bucket, kDecodeBuckets + 1> buckets_{};
    Quantile error_{0};
    Quantile host_us_{0};
    std::int64_t steps_ = 0;
};

}  // namespace tokenspeed
