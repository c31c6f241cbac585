// SPDX-License-Identifier: MIT
#include "sched/misses.h"

#include <algorithm>
#include <iterator>

#include "base/bounded.h"

namespace tokenspeed {
namespace {

std::uint32_t print_of(Hash128 hash) { return static_cast<std::uint32_t>(hash.high); }

}  // namespace

Misses::Miss Misses::judge(SessionId session, std::span<const Hash128> hashes, std::int32_t found) {
    Miss miss{MissReason::none, found};
    const bool missed = found < count_of(hashes);
    if (session.value == 0) {
        miss.reason = missed ? MissReason::fresh : MissReason::none;
        return miss;
    }
    const auto [at, is_new] = memories_.try_emplace(session);
    Memory& memory = at->second;
    const std::size_t both = std::min(memory.chain.size(), hashes.size());
    std::size_t same = 0;
    for (std::size_t unequal = both; same < unequal;) {
        const std::size_t middle = same + (unequal - same) / 2;
        if (memory.chain[middle] == print_of(hashes[middle])) {
            same = middle + 1;
        } else {
            unequal = middle;
        }
    }
    const auto differs = same < both ? static_cast<std::int32_t>(same) : -1;
    if (!missed) {
        miss.reason = MissReason::none;
    } else if (found < static_cast<std::int32_t>(same)) {
        miss.reason = MissReason::evicted;
    } else if (differs < 0) {
        miss.reason = MissReason::fresh;
    } else {
        miss.reason = differs == memory.differed ? MissReason::volatile_line : MissReason::rewritten;
    }
    memory.differed = differs;
    if (is_new) {
        order_.push_back(session);
    }
    remember(session, memory, hashes, same);
    return miss;
}

void Misses::remember(SessionId session, Memory& memory, std::span<const Hash128> hashes, std::size_t same) {
    words_ -= memory.chain.size() - same;
    memory.chain.resize(same);
    std::ranges::transform(hashes.subspan(same), std::back_inserter(memory.chain), print_of);
    words_ += hashes.size() - same;
    while (order_.size() - oldest_ > 1 && (memories_.size() > sessions_max_ || words_ > words_max_)) {
        const SessionId oldest = order_[oldest_++];
        if (oldest == session) {
            order_.push_back(session);
            continue;
        }
        words_ -= memories_.at(oldest).chain.size();
        memories_.erase(oldest);
    }
    if (oldest_ > order_.size() / 2) {
        order_.erase(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(oldest_));
        oldest_ = 0;
    }
}

}  // namespace tokenspeed
