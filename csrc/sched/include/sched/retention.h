// SPDX-License-Identifier: MIT
// Retention: what keeping a resting block is worth: how soon, and how surely, its session comes back.
//
//   class        gaps seen (half octaves of time)          worth at age a
//   turn         ....::|||||::::..          never .        max over horizons T of
//   tool         |||||::::....              never .          P(back within T | silent for a)
//   tool "bash"  ::||||::...                never .          / expected time it is kept, at most T
//
// That ratio (the Gittins index of a return) is a rate: returns gained per block and time. Evicting by it is to
// give every block's time to whom it earns most. It needs no horizon chosen by hand, and falls with age for the
// long-tailed gaps of agents. A block's recomputation counts as one: within a session deeper blocks leave first
// because they are leaves, and between sessions the linear part of prefill dominates.
//
// In: how turns ended, when sessions came back. Out: a class for the block a session rests on, and worths. Gaps
// are learned per class in 65 counters that begin with a prior and halve when full; up to 23 tools (by the hash of
// a name) have a class of their own, first come, the others share one. A wished stay (cache_control ttl) is
// evidence, not a pin: nine in ten come back within it, evenly. All of it is integers: equal events, equal worths.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"
#include "kv/rest.h"
#include "request/ledger.h"

namespace tokenspeed {

// What is known of how long a session will be silent, from how its turn ended.
enum class IdleClass : std::uint8_t { unknown = 0, tool = 1, turn = 2 };

// The gaps of one class, and the worths that follow from them.
class Gaps {
 public:
    static constexpr std::size_t kBins = 64;
    struct Share {  // of a prior: so many of 256 gaps end in the bins up to `until_ms`
        Ticks until_ms;
        std::uint32_t weight;
    };

    void begin(std::span<const Share> prior, std::uint32_t never);
    // The session came back after this gap.
    void add(Ticks gap);
    // The session was forgotten before it came back.
    void add_never();
    [[nodiscard]] std::uint64_t worth(Ticks age) const { return worths_[bin(age)]; }
    [[nodiscard]] bool observed() const { return observed_; }
    [[nodiscard]] std::uint64_t digest(std::uint64_t seed) const;

    // Bin b holds gaps from start(b) to below start(b + 1): 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ...
    [[nodiscard]] static std::size_t bin(Ticks gap);
    [[nodiscard]] static std::uint64_t start(std::size_t bin);

 private:
    void count();
    void weigh();

    std::array<std::uint32_t, kBins> counts_{};
    std::uint32_t never_ = 0;
    std::uint32_t total_ = 0;
    bool observed_ = false;
    std::uint32_t fresh_ = 0;  // observations since the worths were made
    std::array<std::uint64_t, kBins> worths_{};
};

class Retention final : public Appraiser {
 public:
    // The block that a session rests on, and how.
    struct Leaf {
        BlockId block = kNoBlock;
        Hash128 hash{};
        RestClass rest = kRestUnknown;
    };

    explicit Retention(std::int32_t sessions_max);

    [[nodiscard]] std::uint64_t worth(RestClass rest, Ticks age) const override;

    // A request of these terms has ended; its history ends with `block`. The class it rests in for now.
    RestClass end(const Terms& terms, BlockId block, Hash128 hash, std::uint64_t now_us);
    // Why the session is silent; the leaf to classify anew, nothing where it rests on none.
    std::optional<Leaf> idle(SessionId session, IdleClass idle, std::uint64_t gap_key, std::uint64_t now_us);
    // The session comes back: a gap is learned.
    void resume(SessionId session, std::uint64_t now_us);
    // The session is over; the leaf that nobody will want.
    std::optional<Leaf> close(SessionId session);

    [[nodiscard]] std::uint64_t digest(std::uint64_t seed) const;

 private:
    struct Record {
        SessionId session{};
        Leaf leaf{};
        RestClass gap = kRestUnknown;  // whose gaps its next return is one of
        bool resting = false;
        std::uint64_t since_us = 0;
    };

    Record* find(SessionId session);
    Record& find_or_make(SessionId session);
    RestClass class_of(IdleClass idle, std::uint64_t gap_key);
    Gaps& gaps(RestClass rest) { return gaps_[static_cast<std::size_t>(rest)]; }

    static constexpr std::size_t kToolsFirst = 6;
    static constexpr std::size_t kToolsMost = static_cast<std::size_t>(kRestExpected) - kToolsFirst;

    std::array<Gaps, kRestClasses> gaps_;
    std::vector<std::uint64_t> tools_;  // the keys that have a class, in its order
    std::vector<Record> records_;       // a ring: the session that came first is forgotten first
    std::size_t oldest_ = 0;
    std::size_t sessions_max_;
    std::unordered_map<SessionId, std::size_t> places_;
};

}  // namespace tokenspeed
