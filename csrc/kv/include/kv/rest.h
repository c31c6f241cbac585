// SPDX-License-Identifier: MIT
// Rest: how a block that nobody uses is kept: since when, and in which class. Appraiser: what keeping it is worth.
//
// A class is a number that means something to whoever appraises; the tree keeps one list of resting leaves for
// each, oldest first. Time is in ticks of 1.024 ms, 32 bits of it: ages are differences, right up to 49 days.
#pragma once

#include <cstdint>

namespace tokenspeed {

enum class RestClass : std::uint8_t {};

inline constexpr std::size_t kRestClasses = 32;
inline constexpr RestClass kRestUnknown{1};  // of a block that nobody has classified
inline constexpr RestClass kRestExpected{kRestClasses - 3};  // fetched for a request that waits: evicted last
// Not to be found any more, and freed when nobody uses it; of the block itself that is corrupt, quarantined.
inline constexpr RestClass kRestCondemned{kRestClasses - 2};
inline constexpr RestClass kRestCorrupt{kRestClasses - 1};

using Ticks = std::uint32_t;
constexpr Ticks ticks_of(std::uint64_t us) { return static_cast<Ticks>(us >> 10U); }

// What keeping a resting block is worth, per block and time, in any unit: the least is evicted first. Within a
// class the oldest stands for all: worths fall with age, bar small steps.
class Appraiser {
 public:
    [[nodiscard]] virtual std::uint64_t worth(RestClass rest, Ticks age) const = 0;

 protected:
    ~Appraiser() = default;
};

}  // namespace tokenspeed
