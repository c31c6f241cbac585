// SPDX-License-Identifier: MIT
#include "kv/transfer.h"

#include <algorithm>

#include "base/check.h"

namespace tokenspeed {

Transfer::Transfer(std::uint64_t first_id, PathLease from, PathLease to, BlockList targets)
    : first_id_(first_id),
      from_(std::move(from)),
      to_(std::move(to)),
      targets_(std::move(targets)),
      heard_(static_cast<std::size_t>(targets_.size()), false),
      good_(targets_.size()) {
    const auto begin = static_cast<std::size_t>(to_.size());
    check(begin + heard_.size() <= static_cast<std::size_t>(from_.size()), Invariant::I11,
          "more blocks are to be copied than the source has");
    std::vector<std::int32_t> blocks(static_cast<std::size_t>(from_.size()));
    from_.copy_blocks(blocks);
    for (std::size_t i = 0; i < heard_.size(); ++i) {
        from_blocks_.emplace_back(blocks[begin + i]);
    }
    targets_.enter_flight();
}

Transfer::Copy Transfer::issue(const PrefixTree& from) {
    const BlockId source = from_blocks_[static_cast<std::size_t>(issued_)];
    const BlockId before = from.parent(source);
    const BlockId target = targets_[issued_++];
    return {source, target, from.hash(source), before == kNoBlock ? Hash128{} : from.hash(before)};
}

void Transfer::report(std::uint64_t id, CopyResult result) {
    const auto index = static_cast<std::size_t>(id - first_id_);
    if (index >= static_cast<std::size_t>(issued_) || heard_[index]) {
        return;
    }
    heard_[index] = true;
    ++reported_;
    if (result == CopyResult::done) {
        return;
    }
    failed_ = true;
    if (static_cast<std::int32_t>(index) < good_) {
        good_ = static_cast<std::int32_t>(index);
        corrupt_ = result == CopyResult::corrupt ? from_blocks_[index] : corrupt_;
    }
}

PathLease Transfer::land(const PrefixTree& from, PrefixTree& to) && {
    const bool sound = !from.condemned(from_.last()) && !to.condemned(to_.last());
    for (std::int32_t i = 0; sound && i < std::min(good_, issued_); ++i) {
        const Hash128 hash = from.hash(from_blocks_[static_cast<std::size_t>(i)]);
        (void)to.freeze(to_, hash, targets_.pop_front());  // what is known by now comes back and is freed
    }
    targets_.clear();
    from_.clear();
    return std::move(to_);
}

std::uint64_t Transfer::digest(std::uint64_t seed) const {
    seed = digest_of(seed, std::span<const BlockId>(from_blocks_));
    for (std::int32_t i = 0; i < targets_.size(); ++i) {
        const std::array<std::int32_t, 2> fields{targets_[i].value, heard_[static_cast<std::size_t>(i)] ? 1 : 0};
        seed = digest_of(seed, std::span<const std::int32_t>(fields));
    }
    const std::array<std::int32_t, 3> fields{issued_, good_, to_.last().value};
    return digest_of(seed, std::span<const std::int32_t>(fields));
}

}  // namespace tokenspeed
