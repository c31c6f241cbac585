// SPDX-License-Identifier: MIT
#include "sched/retention.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace tokenspeed {
namespace {

constexpr RestClass rest_class(std::size_t index) { return RestClass{static_cast<std::uint8_t>(index)}; }
constexpr RestClass kGone = rest_class(0);
constexpr RestClass kTurn = rest_class(2);
constexpr RestClass kTool = rest_class(3);
constexpr RestClass kRetainedMinutes = rest_class(4);
constexpr RestClass kRetainedHour = rest_class(5);

constexpr std::uint64_t kMinutesUs = 300'000'000;  // the two ttl that callers name
constexpr std::uint64_t kHourUs = 3'600'000'000;

constexpr std::uint32_t kPriorWeight = 16;      // counts of a share, so that thin shares spread evenly
constexpr std::uint32_t kWeight = 128;          // of an observation; a whole prior weighs 32 of them
constexpr std::uint32_t kTotalMost = 1U << 20;  // beyond, older observations count half
constexpr std::uint32_t kFreshMost = 8;         // observations between two weighings
constexpr unsigned kScale = 40;                 // worths are returns per 2^40 ticks

// Measured on recorded sessions of coding agents: tools p50 0.2 s, p90 10 s, p99 300 s; humans p50 140 s, p90
// 1000 s.
constexpr std::array<Gaps::Share, 4> kToolPrior{{{16, 40}, {200, 88}, {10'000, 102}, {300'000, 22}}};
constexpr std::array<Gaps::Share, 5> kTurnPrior{
    {{10'000, 12}, {50'000, 50}, {140'000, 66}, {1'000'000, 76}, {40'000'000, 26}}};
constexpr std::array<Gaps::Share, 5> kUnknownPrior{
    {{200, 110}, {10'000, 90}, {140'000, 28}, {1'000'000, 16}, {40'000'000, 6}}};

Gaps prior(std::span<const Gaps::Share> shares, std::uint32_t never) {
    Gaps gaps;
    gaps.begin(shares, never);
    return gaps;
}

}  // namespace

std::size_t Gaps::bin(Ticks gap) {
    if (gap < 2) {
        return gap;
    }
    const auto width = static_cast<unsigned>(std::bit_width(gap));
    return 2 * (width - 1) + ((gap >> (width - 2)) & 1U);
}

std::uint64_t Gaps::start(std::size_t bin) {
    return bin < 2 ? bin : (2 + (bin & 1U)) << (bin / 2 - 1);
}

void Gaps::begin(std::span<const Share> prior, std::uint32_t never) {
    std::size_t first = 0;
    for (const Share& share : prior) {
        const std::size_t last = bin(share.until_ms);
        const auto bins = static_cast<std::uint32_t>(last - first + 1);
        for (std::size_t b = first; b <= last; ++b) {
            const auto behind = static_cast<std::uint32_t>(b - first);
            const std::uint32_t weight = kPriorWeight * share.weight;
            counts_[b] += weight * (behind + 1) / bins - weight * behind / bins;
        }
        total_ += kPriorWeight * share.weight;
        first = last + 1;
    }
    never_ = kPriorWeight * never;
    total_ += never_;
    weigh();
}

void Gaps::add(Ticks gap) {
    counts_[bin(gap)] += kWeight;
    count();
}

void Gaps::add_never() {
    never_ += kWeight;
    count();
}

void Gaps::count() {
    observed_ = true;
    total_ += kWeight;
    if (total_ > kTotalMost) {
        total_ = never_ /= 2;
        for (std::uint32_t& each : counts_) {
            total_ += each /= 2;
        }
    }
    if (++fresh_ == kFreshMost) {
        weigh();
    }
}

void Gaps::weigh() {
    fresh_ = 0;
    std::uint64_t silent = never_;  // gaps that reach bin `from`
    for (std::size_t from = kBins; from-- > 0;) {
        silent += counts_[from];
        std::uint64_t back = 0;   // gaps that end by the horizon
        std::uint64_t spent = 0;  // ticks that those were kept
        std::uint64_t best = 0;
        for (std::size_t until = from; until < kBins; ++until) {
            const std::uint64_t middle = (start(until) + start(until + 1)) / 2 - start(from);
            back += counts_[until];
            spent += counts_[until] * middle;
            const std::uint64_t horizon = start(until + 1) - start(from);
            const std::uint64_t kept = spent + (silent - back) * horizon;
            if (counts_[until] > 0) {
                best = std::max(best, (back << kScale) / std::max<std::uint64_t>(kept, 1));
            }
        }
        worths_[from] = std::max<std::uint64_t>(best, 1);  // more than what is over
    }
}

std::uint64_t Gaps::digest(std::uint64_t seed) const {
    seed = digest_of(seed, std::span<const std::uint64_t>(worths_));
    return digest_of(digest_of(seed, std::span<const std::uint32_t>(counts_)),
                     std::span<const std::uint32_t>(&never_, 1));
}

Retention::Retention(std::int32_t sessions_max) : sessions_max_(static_cast<std::size_t>(sessions_max)) {
    // Weighed once: a search through small worlds makes thousands of schedulers a second.
    static const Gaps unknown = prior(kUnknownPrior, 6);
    static const Gaps turn = prior(kTurnPrior, 26);
    static const Gaps tool = prior(kToolPrior, 4);
    gaps(kRestUnknown) = unknown;
    gaps(kTurn) = turn;
    std::fill(gaps_.begin() + static_cast<std::ptrdiff_t>(kTool), gaps_.end(), tool);
    tools_.reserve(kToolsMost);
    places_.reserve(sessions_max_);
}

std::uint64_t Retention::worth(RestClass rest, Ticks age) const {
    const auto promised = [&](std::uint64_t ttl_us) {
        const std::uint64_t ttl = ticks_of(ttl_us);
        const std::uint64_t rate = age < ttl ? ((std::uint64_t{9} << kScale) / 10) / ttl : 0;
        return std::max(rate, gaps_[static_cast<std::size_t>(kRestUnknown)].worth(age));
    };
    switch (rest) {
        case kGone:
            return 0;
        case kRestExpected:
            return ~std::uint64_t{0};
        case kRetainedMinutes:
            return promised(kMinutesUs);
        case kRetainedHour:
            return promised(kHourUs);
        default:
            return gaps_[static_cast<std::size_t>(rest)].worth(age);
    }
}

RestClass Retention::end(const Terms& terms, BlockId block, Hash128 hash, std::uint64_t now_us) {
    RestClass rest = kRestUnknown;
    if (terms.retain_us > 0) {
        rest = terms.retain_us <= kMinutesUs ? kRetainedMinutes : kRetainedHour;
    }
    if (terms.final) {
        (void)close(terms.session);
        return kGone;
    }
    if (terms.session.value != 0) {
        Record& record = find_or_make(terms.session);
        record.leaf = {block, hash, rest};
        record.gap = kRestUnknown;
        record.resting = true;
        record.since_us = now_us;
    }
    return rest;
}

std::optional<Retention::Leaf> Retention::idle(SessionId session, IdleClass idle, std::uint64_t gap_key,
                                               std::uint64_t now_us) {
    Record* const record = find(session);
    if (record == nullptr || !record->resting) {
        return std::nullopt;
    }
    record->gap = class_of(idle, gap_key);
    record->since_us = std::max(record->since_us, now_us);
    const RestClass rest = record->leaf.rest;
    if (rest != kRetainedMinutes && rest != kRetainedHour) {
        record->leaf.rest = record->gap;
    }
    return record->leaf;
}

void Retention::resume(SessionId session, std::uint64_t now_us) {
    Record* const record = find(session);
    if (record != nullptr && record->resting) {
        record->resting = false;
        gaps(record->gap).add(ticks_of(now_us - std::min(now_us, record->since_us)));
    }
}

std::optional<Retention::Leaf> Retention::close(SessionId session) {
    Record* const record = find(session);
    if (record == nullptr) {
        return std::nullopt;
    }
    Leaf leaf = record->leaf;
    leaf.rest = kGone;
    places_.erase(session);
    *record = Record{};
    return leaf;
}

RestClass Retention::class_of(IdleClass idle, std::uint64_t gap_key) {
    if (idle != IdleClass::tool) {
        return idle == IdleClass::turn ? kTurn : kRestUnknown;
    }
    if (gap_key == 0) {
        return kTool;
    }
    const auto known = std::ranges::find(tools_, gap_key);
    const auto place = static_cast<std::size_t>(known - tools_.begin());
    if (known == tools_.end()) {
        if (tools_.size() == kToolsMost) {
            return kTool;
        }
        tools_.push_back(gap_key);
    }
    return rest_class(kToolsFirst + place);
}

Retention::Record* Retention::find(SessionId session) {
    const auto place = places_.find(session);
    return place == places_.end() ? nullptr : &records_[place->second];
}

Retention::Record& Retention::find_or_make(SessionId session) {
    if (Record* const known = find(session)) {
        return *known;
    }
    std::size_t place = records_.size();
    if (place < sessions_max_) {
        records_.emplace_back();
    } else {
        place = std::exchange(oldest_, (oldest_ + 1) % sessions_max_);
        const Record& forgotten = records_[place];
        if (forgotten.resting) {
            gaps(forgotten.gap).add_never();
        }
        places_.erase(forgotten.session);
    }
    places_.emplace(session, place);
    records_[place] = Record{.session = session};
    return records_[place];
}

std::uint64_t Retention::digest(std::uint64_t seed) const {
    for (const Gaps& each : gaps_) {
        seed = each.observed() ? each.digest(seed) : seed;
    }
    seed = digest_of(seed, std::span<const std::uint64_t>(tools_));
    for (const Record& each : records_) {
        const std::array<std::uint64_t, 6> fields{each.session.value,
                                                  each.leaf.hash.low,
                                                  each.leaf.hash.high,
                                                  static_cast<std::uint64_t>(each.leaf.rest),
                                                  static_cast<std::uint64_t>(each.gap),
                                                  each.resting ? 1U : 0U};
        seed = digest_of(seed, std::span<const std::uint64_t>(fields));
    }
    return seed;
}

}  // namespace tokenspeed
