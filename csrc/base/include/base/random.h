// SPDX-License-Identifier: MIT
// Seeded randomness (SplitMix64, Steele et al. 2014): the same seed gives the same world on every machine.
#pragma once

#include <cstdint>

namespace tokenspeed {

class Random {
 public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        state_ += 0x9e3779b97f4a7c15U;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
        z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
        return z ^ (z >> 31U);
    }
    // Uniform enough for tests: a value in [0, n).
    std::uint64_t below(std::uint64_t n) { return next() % n; }

 private:
    std::uint64_t state_;
};

}  // namespace tokenspeed
