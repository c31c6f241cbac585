// SPDX-License-Identifier: MIT
#include "kv/pool.h"

#include "base/check.h"
#include "base/hash.h"

namespace tokenspeed {

Pool::Pool(KvKind kind, std::int32_t blocks_total, std::int32_t block_tokens)
    : kind_(kind),
      block_tokens_(block_tokens),
      states_(static_cast<std::size_t>(blocks_total), BlockState::free) {
    free_.reserve(states_.size());
    for (std::int32_t block = blocks_total - 1; block >= 0; --block) {
        free_.push_back(BlockId{block});
    }
    counts_[static_cast<std::size_t>(BlockState::free)] = blocks_total;
}

std::optional<BlockLease> Pool::try_lease() {
    if (free_.empty()) {
        return std::nullopt;
    }
    const BlockId block = free_.back();
    free_.pop_back();
    change(block, BlockState::leased);
    return BlockLease(*this, block);
}

std::vector<std::optional<BlockLease>> Pool::claim(std::span<const std::int32_t> blocks) {
    std::vector<std::optional<BlockLease>> leases;
    leases.reserve(blocks.size());
    for (const std::int32_t each : blocks) {
        const BlockId block{each};
        const bool free = each >= 0 && each < blocks_total() && state(block) == BlockState::free;
        if (free) {
            change(block, BlockState::leased);
        }
        leases.push_back(free ? std::optional(BlockLease(*this, block)) : std::nullopt);
    }
    std::erase_if(free_, [this](BlockId block) { return state(block) != BlockState::free; });
    return leases;
}

void Pool::change(BlockId block, BlockState to) noexcept {
    BlockState& state = states_[block.index()];
    --counts_[static_cast<std::size_t>(state)];
    ++counts_[static_cast<std::size_t>(to)];
    state = to;
    if (to == BlockState::free) {
        free_.push_back(block);  // never allocates: the stack was reserved for the whole pool
    }
}

void Pool::scrub() noexcept {
    for (std::size_t i = 0; blocks_in(BlockState::quarantined) > 0; ++i) {
        if (states_[i] == BlockState::quarantined) {
            change(BlockId{static_cast<std::int32_t>(i)}, BlockState::free);
        }
    }
}

std::uint64_t Pool::digest(std::uint64_t seed) const {
    return digest_of(digest_of(seed, std::span<const BlockId>(free_)), std::span<const BlockState>(states_));
}

void Pool::check_counts() const {
    std::array<std::int32_t, kBlockStates> seen{};
    for (const BlockState state : states_) {
        ++seen[static_cast<std::size_t>(state)];
    }
    check(seen == counts_, Invariant::I1, "the counts of block states disagree with the blocks");
    check(count_of(free_) == blocks_in(BlockState::free), Invariant::I1,
          "the free list disagrees with its count");
    for (const BlockId block : free_) {
        check(state(block) == BlockState::free, Invariant::I1, "a block of the free list is not free");
    }
}

BlockLease& BlockLease::operator=(BlockLease&& from) noexcept {
    if (this != &from) {
        give_back();
        pool_ = std::exchange(from.pool_, nullptr);
        block_ = from.block_;
    }
    return *this;
}

void BlockLease::give_back() noexcept {
    if (pool_ != nullptr) {
        std::exchange(pool_, nullptr)->change(block_, BlockState::free);
    }
}

BlockId BlockLease::surrender(BlockState to) && {
    std::exchange(pool_, nullptr)->change(block_, to);
    return block_;
}

BlockList::BlockList(BlockList&& from) noexcept
    : pool_(from.pool_), front_(std::exchange(from.front_, 0)), blocks_(std::move(from.blocks_)) {
    from.blocks_.clear();
}

BlockList& BlockList::operator=(BlockList&& from) noexcept {
    if (this != &from) {
        clear();
        pool_ = from.pool_;
        front_ = std::exchange(from.front_, 0);
        blocks_ = std::move(from.blocks_);
        from.blocks_.clear();
    }
    return *this;
}

void BlockList::push(BlockLease lease) {
    check(lease.pool_ == pool_, Invariant::I2, "a lease of another pool enters a list");
    blocks_.push_back(lease.block_);
    lease.pool_ = nullptr;
}

BlockLease BlockList::pop_front() {
    check(front_ < blocks_.size(), Invariant::I2, "a lease is taken from an empty list");
    BlockLease lease(*pool_, blocks_[front_++]);
    if (front_ == blocks_.size()) {
        blocks_.clear();
        front_ = 0;
    }
    return lease;
}

void BlockList::clear() noexcept {
    for (std::size_t i = blocks_.size(); i > front_; --i) {
        pool_->change(blocks_[i - 1], BlockState::free);
    }
    blocks_.clear();
    front_ = 0;
}

void BlockList::enter_flight() noexcept {
    for (std::size_t i = front_; i < blocks_.size(); ++i) {
        pool_->change(blocks_[i], BlockState::in_flight);
    }
}

}  // namespace tokenspeed
