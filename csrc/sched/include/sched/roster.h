// SPDX-License-Identifier: MIT
// Roster: the bounded container of the requests in one state, ordered by rank. A seat is a request's place in
// it and stays the same until the request leaves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/bounded.h"
#include "base/check.h"
#include "request/ledger.h"

namespace tokenspeed {

struct Seat {
    std::int32_t value = -1;
    friend bool operator==(Seat, Seat) = default;
};

template <class State>
class Roster {
 public:
    explicit Roster(std::int32_t seats_max) : seats_(static_cast<std::size_t>(seats_max)) {
        order_.reserve(seats_.size());
        free_.reserve(seats_.size());
        for (std::int32_t seat = seats_max - 1; seat >= 0; --seat) {
            free_.push_back(Seat{seat});
        }
    }

    [[nodiscard]] std::int32_t size() const { return count_of(order_); }
    [[nodiscard]] bool empty() const { return order_.empty(); }

    Seat insert(State&& state) {
        check(!free_.empty(), Invariant::I5, "a roster is full");
        const Seat seat = free_.back();
        free_.pop_back();
        const Rank rank = state.ledger->rank();
        order_.insert(position(rank), Entry{rank, seat});
        at_optional(seat).emplace(std::move(state));
        return seat;
    }

    State extract(Seat seat) {
        State state = std::move(*at_optional(seat));
        at_optional(seat).reset();
        order_.erase(position(state.ledger->rank()));
        free_.push_back(seat);
        return state;
    }

    [[nodiscard]] bool contains(Seat seat) const {
        return seats_[static_cast<std::size_t>(seat.value)].has_value();
    }
    State& operator[](Seat seat) { return *at_optional(seat); }
    const State& operator[](Seat seat) const { return *seats_[static_cast<std::size_t>(seat.value)]; }

    // The seat of the i-th request by rank.
    [[nodiscard]] Seat seat(std::int32_t i) const { return order_[static_cast<std::size_t>(i)].seat; }
    [[nodiscard]] Rank rank(std::int32_t i) const { return order_[static_cast<std::size_t>(i)].rank; }
    // How many requests rank before `rank`.
    [[nodiscard]] std::int32_t before(Rank rank) const {
        const auto at = std::ranges::lower_bound(order_, rank, {}, &Entry::rank);
        return static_cast<std::int32_t>(at - order_.begin());
    }

 private:
    struct Entry {
        Rank rank;
        Seat seat;
    };
    std::optional<State>& at_optional(Seat seat) { return seats_[static_cast<std::size_t>(seat.value)]; }
    auto position(Rank rank) { return std::ranges::lower_bound(order_, rank, {}, &Entry::rank); }

    std::vector<std::optional<State>> seats_;
    std::vector<Entry> order_;
    std::vector<Seat> free_;
};

}  // namespace tokenspeed
