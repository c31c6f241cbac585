// SPDX-License-Identifier: MIT
// Pace: when the next token of a decoding request is due, so that its floor holds over every window of 64 of its
// tokens, or of 2 s where those are fewer.
//
//   due[n + 1] = min(due[n], came[n] + credit) + interval
//
// A request that runs ahead earns credit, a sixteenth of a window at most: then a window takes at most credit +
// window * interval, and the interval is shortened so that this is what the floor allows. Credit does not pile up
// over windows, and dues are evenly spaced: whoever meets the first can meet them all. Nanoseconds of the engine's
// clock.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tokenspeed {

struct Pace {
    static constexpr std::uint64_t kWindowTokens = 64;
    static constexpr std::uint64_t kWindowNs = 2'000'000'000;
    static constexpr std::uint64_t kParts = 16;  // a window's parts, of which one is credit

    std::uint64_t interval_ns = 0;  // between dues; 0: no floor
    std::uint64_t credit_ns = 0;
    std::uint64_t due_ns = 0;  // of the next token; 0: none has come yet

    // Of a floor in thousandths of a token per second.
    static constexpr Pace of(std::int32_t floor_mtps) {
        if (floor_mtps <= 0) {
            return {};
        }
        const std::uint64_t promised_ns = 1'000'000'000'000U / static_cast<std::uint64_t>(floor_mtps);
        const std::uint64_t window_ns = std::min(kWindowTokens * promised_ns, kWindowNs);
        return {promised_ns * (kParts - 1) / kParts, window_ns / kParts, 0};
    }
    [[nodiscard]] constexpr bool promised() const { return interval_ns > 0; }
    // A token came at `now_ns`.
    constexpr void advance(std::uint64_t now_ns) {
        due_ns = (due_ns == 0 ? now_ns : std::min(due_ns, now_ns + credit_ns)) + interval_ns;
    }
    // When the token `ahead` places after the next one is due, if the first of all comes at `first_ns`.
    [[nodiscard]] constexpr std::uint64_t due_after(std::uint64_t ahead, std::uint64_t first_ns) const {
        return (due_ns == 0 ? first_ns : due_ns) + ahead * interval_ns;
    }
};

}  // namespace tokenspeed
