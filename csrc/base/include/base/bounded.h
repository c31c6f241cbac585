// SPDX-License-Identifier: MIT
// Bounded: a list of at most `capacity` values in memory that somebody else owns. Never allocates, never
// moves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"

namespace tokenspeed {

template <class T>
class Bounded {
 public:
    Bounded() = default;
    explicit Bounded(std::span<T> memory) : memory_(memory) {}

    void clear() { size_ = 0; }
    void push(T value) {
        check(size_ < memory_.size(), Invariant::I5, "a bounded list is full");
        memory_[size_++] = value;
    }
    [[nodiscard]] std::size_t size() const { return size_; }
    [[nodiscard]] std::size_t capacity() const { return memory_.size(); }
    [[nodiscard]] std::size_t room() const { return memory_.size() - size_; }
    [[nodiscard]] std::span<const T> values() const { return memory_.first(size_); }
    // Append `n` values to be written by the caller.
    std::span<T> extend(std::size_t n) {
        check(n <= room(), Invariant::I5, "a bounded list is full");
        size_ += n;
        return memory_.subspan(size_ - n, n);
    }

 private:
    std::span<T> memory_;
    std::size_t size_ = 0;
};

// A container's size as the signed count that plans carry.
template <class C>
constexpr std::int32_t count_of(const C& container) {
    return static_cast<std::int32_t>(container.size());
}

}  // namespace tokenspeed
