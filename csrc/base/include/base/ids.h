// SPDX-License-Identifier: MIT
// Strong identities: two kinds of id never mix, and an id is never a count.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace tokenspeed {

template <class Tag, class Rep>
struct Id {
    using rep = Rep;
    Rep value{};

    constexpr Id() = default;
    constexpr explicit Id(Rep v) : value(v) {}
    friend constexpr auto operator<=>(Id, Id) = default;
    // Position of this id in an array that has one entry per id.
    [[nodiscard]] constexpr std::size_t index() const { return static_cast<std::size_t>(value); }
};

using RequestId = Id<struct RequestTag, std::uint64_t>;
using StepId = Id<struct StepTag, std::uint64_t>;
using SlotId = Id<struct SlotTag, std::int32_t>;
using BlockId = Id<struct BlockTag, std::int32_t>;
// One per admission of a request to a slot: a result of an earlier binding is told from one of this binding.
using BindingId = Id<struct BindingTag, std::uint64_t>;

// A caller's name of a run of requests that share a growing history, and of who pays for it; 0 names none.
using SessionId = Id<struct SessionTag, std::uint64_t>;
using TenantId = Id<struct TenantTag, std::uint64_t>;

inline constexpr BlockId kNoBlock{-1};

}  // namespace tokenspeed

template <class Tag, class Rep>
struct std::hash<tokenspeed::Id<Tag, Rep>> {
    std::size_t operator()(tokenspeed::Id<Tag, Rep> id) const noexcept { return std::hash<Rep>{}(id.value); }
};
