// SPDX-License-Identifier: MIT
// check(): the invariants of the control plane, numbered once. A failure is a defect of this code, never of
// load.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace tokenspeed {

enum class Invariant : std::uint8_t {
    I1 = 1,  // every block is exactly one of free, leased, frozen, in flight, quarantined; the counts sum to the pool
    I2 = 2,  // a writable block has one lease
    I3 = 3,  // a frozen block's uses = paths ending on it (tables, flights) + children in use
    I4 = 4,  // in the tree a present node's parent is present
    I5 = 5,  // a plan fits its token, row, block and delta budgets
    I6 = 6,  // no block written by step n is read or reused by another before n retires, save by its own row
    I7 = 7,  // each planned token has one position and one destination
    I8 = 8,  // every accepted request finishes exactly once
    I9 = 9,  // results commit in launch order
    I10 = 10,  // a runnable request is planned within K steps
    I11 = 11,  // in every tier a block is free, holds KV, or belongs to one copy in flight; a copy's source stays
    I12 = 12,  // only requests of admitted sessions run; what is charged is the sum over the admitted
    I13 = 13,  // the accounts of sessions sum to the time of the steps
};

// Thrown by check(): the core stops. It says which invariant broke and what was seen.
class InvariantError : public std::logic_error {
 public:
    InvariantError(Invariant which, const char* what);
    [[nodiscard]] Invariant which() const { return which_; }

 private:
    Invariant which_;
};

[[noreturn]] void fail(Invariant which, const char* what);

inline void check(bool holds, Invariant which, const char* what) {
    if (!holds) [[unlikely]] {
        fail(which, what);
    }
}

}  // namespace tokenspeed
