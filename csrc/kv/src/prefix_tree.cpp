// SPDX-License-Identifier: MIT
#include "kv/prefix_tree.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/plant.h"

namespace tokenspeed {

PathLease::PathLease(PathLease&& from) noexcept
    : tree_(from.tree_), last_(std::exchange(from.last_, kNoBlock)), size_(std::exchange(from.size_, 0)) {}

PathLease& PathLease::operator=(PathLease&& from) noexcept {
    if (this != &from) {
        clear();
        tree_ = from.tree_;
        last_ = std::exchange(from.last_, kNoBlock);
        size_ = std::exchange(from.size_, 0);
    }
    return *this;
}

void PathLease::clear() noexcept {
    tree_->unuse(std::exchange(last_, kNoBlock));
    size_ = 0;
}

void PathLease::copy_blocks(std::span<std::int32_t> out) const {
    BlockId block = last_;
    for (std::int32_t i = size_ - 1; i >= 0; --i) {
        out[static_cast<std::size_t>(i)] = block.value;
        block = tree_->node(block).parent;
    }
}

PrefixTree::PrefixTree(Pool& pool)
    : pool_(&pool),
      nodes_(static_cast<std::size_t>(pool.blocks_total())),
      index_(std::bit_ceil(nodes_.size() + nodes_.size() / 2 + 1), -1),
      index_mask_(index_.size() - 1) {}

PrefixTree::Match PrefixTree::match(std::span<const Hash128> hashes) const {
    constexpr std::size_t kAhead = 8;
    Match found;
    for (std::size_t i = 0; i < hashes.size(); ++i) {
        if (i + kAhead < hashes.size()) {
            __builtin_prefetch(&index_[hashes[i + kAhead].low & index_mask_]);
        }
        const BlockId block = find(hashes[i]);
        if (block == kNoBlock) {
            break;
        }
        found.last = block;
        ++found.size;
        found.in_use += node(block).uses > 0 ? 1 : 0;
    }
    return found;
}

PathLease PrefixTree::lease(const Match& match) {
    if (!planted(Plant::dropped_use)) {
        use(match.last);
    }
    if (match.last != kNoBlock) {
        node(match.last).rest = static_cast<std::uint32_t>(kRestUnknown);
    }
    return PathLease(*this, match.last, match.size);
}

PathLease PrefixTree::hold(BlockId last) {
    std::int32_t size = 0;
    for (BlockId block = last; block != kNoBlock; block = node(block).parent) {
        ++size;
    }
    use(last);
    return PathLease(*this, last, size);
}

std::optional<BlockLease> PrefixTree::freeze(PathLease& path, Hash128 hash, BlockLease lease) {
    check(path.tree_ == this && lease.pool_ == pool_, Invariant::I2, "a block is frozen into another tree");
    const BlockId known = find(hash);
    if (known != kNoBlock) {
        check(node(known).parent == path.last_, Invariant::I4, "two paths meet in one node");
        use(known);
        unuse(std::exchange(path.last_, known));
        ++path.size_;
        return lease;
    }
    const BlockId block = std::move(lease).surrender(BlockState::frozen);
    node(block) = Node{.hash = hash, .parent = path.last_, .uses = 1};
    index_insert(block);
    ++frozen_;
    ++in_use_;
    if (path.last_ != kNoBlock) {
        ++node(path.last_).children;  // its use by the path's end becomes the use by a child
    }
    path.last_ = block;
    ++path.size_;
    return std::nullopt;
}

BlockId PrefixTree::victim() const {
    if (climbing_ != kNoBlock) {
        return climbing_;
    }
    BlockId least = kNoBlock;
    std::uint64_t least_worth = 0;
    for (const List& list : lists_) {
        if (list.oldest == kNoBlock) {
            continue;
        }
        const Node& oldest = node(list.oldest);
        const std::uint64_t worth =
            appraiser_ == nullptr ? 0 : appraiser_->worth(RestClass{static_cast<std::uint8_t>(oldest.rest)},
                                                          now_ - oldest.rested);
        if (least == kNoBlock || worth < least_worth) {
            least = list.oldest;
            least_worth = worth;
        }
    }
    return least;
}

std::optional<std::uint64_t> PrefixTree::worth_least() const {
    const BlockId least = victim();
    if (least == kNoBlock) {
        return std::nullopt;
    }
    return appraiser_ == nullptr ? 0 : appraiser_->worth(rest(least), now_ - node(least).rested);
}

bool PrefixTree::evict_one() {
    BlockId evicted = victim();
    if (evicted == kNoBlock) {
        return false;
    }
    if (planted(Plant::parent_evicted)) {
        const BlockId parent = node(evicted).parent;
        if (parent != kNoBlock && node(parent).uses == 0 && pool_->state(parent) == BlockState::frozen) {
            evicted = parent;
        }
    }
    if (node(evicted).children == 0) {
        unlink(evicted);
    }
    index_erase(evicted);
    ++evictions_;
    remove(evicted, BlockState::free);
    return true;
}

void PrefixTree::remove(BlockId block, BlockState to) noexcept {
    climbing_ = kNoBlock;
    while (true) {
        const Node at = node(block);
        --frozen_;
        pool_->change(block, to);
        if (at.parent == kNoBlock) {
            return;
        }
        Node& parent = node(at.parent);
        if (--parent.children > 0 || parent.uses > 0) {
            return;
        }
        if (!condemned(at.parent)) {
            if (RestClass{static_cast<std::uint8_t>(at.rest)} < kRestCondemned) {
                // A parent without children was used no later than they were, so it leaves next.
                parent.rest = at.rest;
                parent.rested = at.rested;
                climbing_ = at.parent;
            }
            link_oldest(at.parent);
            return;
        }
        block = at.parent;
        to = gone_as(block);
    }
}

std::int32_t PrefixTree::condemn(BlockId block) {
    enum class Fate : std::uint8_t { unknown, sound, lost };
    std::vector<Fate> fates(nodes_.size(), Fate::unknown);
    fates[block.index()] = Fate::lost;
    std::vector<BlockId> lost{block};
    std::vector<BlockId> climbed;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
        BlockId at{static_cast<std::int32_t>(i)};
        if (pool_->state(at) != BlockState::frozen) {
            continue;
        }
        climbed.clear();
        while (at != kNoBlock && fates[at.index()] == Fate::unknown) {
            climbed.push_back(at);
            at = node(at).parent;
        }
        const Fate fate = at == kNoBlock ? Fate::sound : fates[at.index()];
        for (auto each = climbed.rbegin(); each != climbed.rend(); ++each) {  // a parent before its children
            fates[each->index()] = fate;
            if (fate == Fate::lost) {
                lost.push_back(*each);
            }
        }
    }
    for (const BlockId each : lost) {
        if (!condemned(each)) {
            index_erase(each);
        }
    }
    std::erase_if(lost, [this](BlockId each) { return condemned(each); });
    for (const BlockId each : lost) {
        Node& at = node(each);
        if (at.uses == 0 && at.children == 0) {
            unlink(each);
        }
        at.rest = static_cast<std::uint32_t>(each == block ? kRestCorrupt : kRestCondemned);
    }
    for (const BlockId each : lost) {
        const Node& at = node(each);
        if (pool_->state(each) == BlockState::frozen && at.uses == 0 && at.children == 0) {
            remove(each, gone_as(each));
        }
    }
    climbing_ = kNoBlock;
    return static_cast<std::int32_t>(lost.size());
}

void PrefixTree::classify(BlockId block, RestClass rest) noexcept {
    Node& at = node(block);
    if (condemned(block)) {
        return;
    }
    const bool resting = at.uses == 0 && at.children == 0;
    if (resting) {
        unlink(block);
    }
    at.rest = static_cast<std::uint32_t>(rest);
    if (resting) {
        link_youngest(block);
    }
}

void PrefixTree::use(BlockId block) noexcept {
    while (block != kNoBlock) {
        Node& at = node(block);
        if (at.uses++ > 0) {
            return;
        }
        ++in_use_;
        if (at.children == 0) {
            unlink(block);
        }
        block = at.parent;
    }
}

void PrefixTree::unuse(BlockId block) noexcept {
    while (block != kNoBlock) {
        Node& at = node(block);
        if (planted(Plant::dropped_use) && at.uses == 0) {
            return;
        }
        if (--at.uses > 0) {
            return;
        }
        --in_use_;
        const BlockId parent = at.parent;
        if (at.children == 0 && condemned(block)) {
            remove(block, gone_as(block));  // the parent is in use by it, still
        } else if (at.children == 0) {
            link_youngest(block);
        }
        block = parent;
    }
}

BlockId PrefixTree::find(Hash128 hash) const {
    for (std::uint64_t at = hash.low & index_mask_; index_[at] >= 0; at = (at + 1) & index_mask_) {
        if (nodes_[static_cast<std::size_t>(index_[at])].hash == hash) {
            return BlockId{index_[at]};
        }
    }
    return kNoBlock;
}

void PrefixTree::index_insert(BlockId block) {
    std::uint64_t at = node(block).hash.low & index_mask_;
    while (index_[at] >= 0) {
        at = (at + 1) & index_mask_;
    }
    index_[at] = block.value;
}

void PrefixTree::index_erase(BlockId block) {
    std::uint64_t hole = node(block).hash.low & index_mask_;
    while (index_[hole] != block.value) {
        check(index_[hole] >= 0, Invariant::I4, "an evicted block is not in the index");
        hole = (hole + 1) & index_mask_;
    }
    // Shift back every later entry of the run whose home is not after the hole, so that no tombstones remain.
    for (std::uint64_t at = (hole + 1) & index_mask_; index_[at] >= 0; at = (at + 1) & index_mask_) {
        const std::uint64_t home = nodes_[static_cast<std::size_t>(index_[at])].hash.low & index_mask_;
        if (((at - home) & index_mask_) >= ((at - hole) & index_mask_)) {
            index_[hole] = index_[at];
            hole = at;
        }
    }
    index_[hole] = -1;
}

void PrefixTree::link_youngest(BlockId block) noexcept {
    Node& at = node(block);
    List& list = list_of(at);
    at.rested = now_;
    at.older = std::exchange(list.youngest, block);
    at.younger = kNoBlock;
    (at.older == kNoBlock ? list.oldest : node(at.older).younger) = block;
}

void PrefixTree::link_oldest(BlockId block) noexcept {
    Node& at = node(block);
    List& list = list_of(at);
    at.older = kNoBlock;
    at.younger = std::exchange(list.oldest, block);
    (at.younger == kNoBlock ? list.youngest : node(at.younger).older) = block;
}

void PrefixTree::unlink(BlockId block) noexcept {
    Node& at = node(block);
    List& list = list_of(at);
    (at.older == kNoBlock ? list.oldest : node(at.older).younger) = at.younger;
    (at.younger == kNoBlock ? list.youngest : node(at.younger).older) = at.older;
    at.older = at.younger = kNoBlock;
    if (climbing_ == block) {
        climbing_ = kNoBlock;
    }
}

std::uint64_t PrefixTree::digest(std::uint64_t seed) const {
    for (const List& list : lists_) {
        for (BlockId block = list.oldest; block != kNoBlock; block = node(block).younger) {
            seed = digest_of(seed, std::span<const BlockId>(&block, 1));  // the order of eviction
        }
        seed = digest_of(seed, std::span<const BlockId>(&climbing_, 1));
    }
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
        if (pool_->state(BlockId{static_cast<std::int32_t>(i)}) == BlockState::frozen) {
            seed = digest_of(seed, std::span<const Hash128>(&nodes_[i].hash, 1));
            seed = digest_of(seed, std::span<const BlockId>(&nodes_[i].parent, 1));
        }
    }
    return seed;
}

void PrefixTree::check_tree(std::span<const std::int32_t> paths_ending) const {
    std::vector<std::int32_t> uses(paths_ending.begin(), paths_ending.end());
    std::vector<std::int32_t> children(nodes_.size(), 0);
    std::int32_t frozen = 0;
    std::int32_t in_use = 0;
    std::int32_t leaves_idle = 0;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
        const BlockId block{static_cast<std::int32_t>(i)};
        if (pool_->state(block) != BlockState::frozen) {
            check(paths_ending[i] == 0, Invariant::I3, "a path ends on a block that is not frozen");
            continue;
        }
        const Node& at = nodes_[i];
        ++frozen;
        in_use += at.uses > 0 ? 1 : 0;
        leaves_idle += at.uses == 0 && at.children == 0 ? 1 : 0;
        check((find(at.hash) == block) != condemned(block), Invariant::I4,
              "a frozen block is not found by its hash, or a condemned one is");
        check(!condemned(block) || at.uses > 0, Invariant::I3, "a condemned block that nobody uses is kept");
        check(at.parent == kNoBlock || !condemned(at.parent) || condemned(block), Invariant::I4,
              "a block follows a condemned one");
        if (at.parent != kNoBlock) {
            check(pool_->state(at.parent) == BlockState::frozen, Invariant::I4,
                  "the parent of a node is absent");
            uses[at.parent.index()] += at.uses > 0 ? 1 : 0;
            ++children[at.parent.index()];
        }
    }
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
        if (pool_->state(BlockId{static_cast<std::int32_t>(i)}) == BlockState::frozen) {
            check(uses[i] == nodes_[i].uses, Invariant::I3,
                  "the uses of a frozen block disagree with its holders");
            check(children[i] == nodes_[i].children, Invariant::I4,
                  "the children of a node disagree with its count");
        }
    }
    check(frozen == frozen_ && in_use == in_use_, Invariant::I3, "the tree's counts disagree with its nodes");
    check(frozen == pool_->blocks_in(BlockState::frozen), Invariant::I1,
          "tree and pool disagree on frozen blocks");
    std::int32_t listed = 0;
    for (const List& list : lists_) {
        for (BlockId block = list.oldest; block != kNoBlock && listed <= leaves_idle;
             block = node(block).younger) {
            ++listed;
            check(node(block).uses == 0 && node(block).children == 0, Invariant::I3,
                  "a node in use may be evicted");
        }
    }
    check(listed == leaves_idle, Invariant::I3, "the lists of resting leaves disagree with the idle leaves");
}

}  // namespace tokenspeed
