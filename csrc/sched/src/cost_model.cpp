// SPDX-License-Identifier: MIT
#include "sched/cost_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace tokenspeed {
namespace {

// Where nobody says better: a 16B model of experts on one H200 (docs/log); the first steps set the scale.
constexpr StepCost kPrior{.base_us = 3000, .row_us = 100, .context_us = 0.01, .token_us = 12, .pair_us = 0.0002};
constexpr double kForget = 0.998;     // a step in 350 has half its weight
constexpr double kRidge = 0.02;       // the prior, in steps
constexpr double kScaleStride = 0.1;  // of a bucket's ratio to the fit
constexpr double kUpperShare = 0.975;
constexpr double kErrorShare = 0.99;
constexpr int kSweeps = 8;

}  // namespace

CostModel::CostModel(const Options& options) : exact_(options.cost_exact) {
    const StepCost& given = options.cost;
    const bool known = exact_ || given.base_us + given.row_us + given.context_us + given.token_us > 0;
    const StepCost& cost = known ? given : kPrior;
    prior_ = {cost.base_us, cost.row_us, cost.context_us, cost.token_us, cost.pair_us};
    theta_.fill(1);
}

CostModel::Vector CostModel::priced(const Work& work) const {
    return {prior_[0], prior_[1] * work.decode_rows, prior_[2] * static_cast<double>(work.context_tokens),
            prior_[3] * static_cast<double>(work.prefill_tokens),
            prior_[4] * static_cast<double>(work.prefill_pairs)};
}

std::size_t CostModel::bucket_of(const Work& work) {
    if (work.prefill_tokens > 0) {
        return kDecodeBuckets;
    }
    const auto rows = static_cast<std::uint32_t>(std::max(work.decode_rows, 1));
    return std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(rows - 1)), kDecodeBuckets - 1);
}

StepCost CostModel::prices() const {
    return {theta_[0] * prior_[0], theta_[1] * prior_[1], theta_[2] * prior_[2], theta_[3] * prior_[3],
            theta_[4] * prior_[4]};
}

double CostModel::predict(const Work& work) const {
    const Vector parts = priced(work);
    double us = 0;
    for (std::size_t i = 0; i < kPrices; ++i) {
        us += theta_[i] * parts[i];
    }
    return us * buckets_[bucket_of(work)].scale;
}

double CostModel::upper(const Work& work) const {
    const double us = predict(work);
    return exact_ ? us : us * (1 + std::max(0.0, buckets_[bucket_of(work)].margin.value)) + host_us_.value;
}

std::int32_t CostModel::tokens_within(const Work& work, std::int32_t start, double budget_us) const {
    Work with = work;
    with.add_chunk(start, 1);
    const Bucket& bucket = buckets_[bucket_of(with)];
    const double factor = exact_ ? 1 : bucket.scale * (1 + std::max(0.0, bucket.margin.value));
    const StepCost cost = prices();
    const double rest = (budget_us - (exact_ ? 0 : host_us_.value)) / factor - cost(work);
    if (rest <= 0) {
        return 0;
    }
    // pair / 2 n^2 + (token + pair (start + 1/2)) n = rest
    const double square = cost.pair_us / 2;
    const double linear = cost.token_us + cost.pair_us * (start + 0.5);
    const double root = std::sqrt(linear * linear + 4 * square * rest);
    const double most = linear + root > 0 ? 2 * rest / (linear + root) : std::numeric_limits<double>::max();
    return static_cast<std::int32_t>(std::min(most, 1e9));
}

void CostModel::learn(const Work& work, double step_us, double elapsed_us) {
    if (step_us <= 0) {
        return;
    }
    ++steps_;
    const double excess = step_us / std::max(predict(work), 1e-3) - 1;
    error_.add(std::abs(excess), kErrorShare, 0.01);
    if (exact_) {
        return;
    }
    host_us_.add(std::clamp(elapsed_us - step_us, 0.0, step_us), kUpperShare, 0.02 * step_us);
    host_us_.value = std::max(0.0, host_us_.value);
    Bucket& bucket = buckets_[bucket_of(work)];
    const double usual = 3 * std::max(bucket.margin.value, 0.05);
    bucket.margin.add(excess, kUpperShare, 0.02);
    bucket.scale *= 1 + kScaleStride * std::clamp(excess, -usual, usual) / (1 + usual);
    Vector shares = priced(work);
    for (double& share : shares) {
        share /= step_us;
    }
    // A late step counts for no more than one that is late as usual; the first ones set the scale.
    fit(shares, steps_ > 8 && excess > usual ? usual / excess : 1);
}

// min over theta >= 0 of sum w (theta . shares - 1)^2 + ridge |theta - s|^2, where s is the best single multiple
// of the prior, by coordinate descent from where it stood.
void CostModel::fit(const Vector& shares, double weight) {
    double sums = 0;
    double targets = 0;
    for (std::size_t i = 0; i < kPrices; ++i) {
        for (std::size_t j = 0; j < kPrices; ++j) {
            gram_[i][j] = kForget * gram_[i][j] + weight * shares[i] * shares[j];
            sums += gram_[i][j];
        }
        target_[i] = kForget * target_[i] + weight * shares[i];
        targets += target_[i];
    }
    const double common = sums > 0 ? targets / sums : 1;
    // The ridge is in units of what a price explains, so that it weighs the same on every device.
    const double ridge = kRidge / std::max(common * common, 1e-12);
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
        for (std::size_t i = 0; i < kPrices; ++i) {
            double rest = target_[i] + ridge * common;
            for (std::size_t j = 0; j < kPrices; ++j) {
                rest -= j == i ? 0 : gram_[i][j] * theta_[j];
            }
            theta_[i] = std::max(0.0, rest / (gram_[i][i] + ridge));
        }
    }
}

void CostModel::Quantile::add(double sample, double share, double stride_least) {
    ++seen;
    if (seen == 1) {
        value = std::max(value, sample);
        return;
    }
    const double stride = std::max(stride_least, std::abs(sample - value) / static_cast<double>(seen));
    value += sample > value ? stride * share : -stride * (1 - share);
}

}  // namespace tokenspeed
