// SPDX-License-Identifier: MIT
// PrefixTree: the shared history of frozen blocks, found by chained hash. PathLease: the right to read one
// path of it.
//
//   salt A --- b7 --- b2 --- b9        a node is one frozen block and is named by its block id
//                \                     uses = paths that end on it + its children in use
//                 +-- b4               uses 0 and no child: it rests, in the list of its class
//   salt B --- b1
//
// A path holds its last node only: a node in use keeps its parent in use, so taking the next block of a path,
// or ending a request whose history others share, costs O(1). Frozen blocks are read-only: there is no
// function that writes one. Control state of a block: 40 bytes of node, at most 12 of index, 5 in the pool: 57.
// Does not know requests, tokens or salts: hashes come in ready made.
//
// Eviction takes the oldest leaf of the class whose oldest is worth least (kv/rest.h), then climbs: a parent left
// without children inherits the rest of its last child, so a history leaves from its end, whole, before the next
// choice is made. O(classes) a choice, O(1) a block; no scan. Without an appraiser every leaf is of one class:
// the least recently used goes first.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"
#include "kv/pool.h"
#include "kv/rest.h"

namespace tokenspeed {

class PrefixTree;

// Read-only right to the blocks from a root to one node. Move-only; the empty path (length 0) holds nothing.
class [[nodiscard]] PathLease {
 public:
    explicit PathLease(PrefixTree& tree) : tree_(&tree) {}
    PathLease(PathLease&& from) noexcept;
    PathLease& operator=(PathLease&& from) noexcept;
    PathLease(const PathLease&) = delete;
    PathLease& operator=(const PathLease&) = delete;
    ~PathLease() { clear(); }

    void clear() noexcept;
    [[nodiscard]] std::int32_t size() const { return size_; }
    [[nodiscard]] BlockId last() const { return last_; }
    // Write the blocks from the root to the end of the path; `out` has size() entries.
    void copy_blocks(std::span<std::int32_t> out) const;

 private:
    friend class PrefixTree;
    PathLease(PrefixTree& tree, BlockId last, std::int32_t size) : tree_(&tree), last_(last), size_(size) {}

    PrefixTree* tree_;
    BlockId last_ = kNoBlock;
    std::int32_t size_ = 0;
};

class PrefixTree {
 public:
    // What a lookup found, valid until the tree changes: a path, and how many of its blocks are in use
    // already.
    struct Match {
        BlockId last = kNoBlock;
        std::int32_t size = 0;
        std::int32_t in_use = 0;
    };

    explicit PrefixTree(Pool& pool);
    PrefixTree(const PrefixTree&) = delete;
    PrefixTree& operator=(const PrefixTree&) = delete;

    // The longest known path along `hashes`. Changes nothing.
    [[nodiscard]] Match match(std::span<const Hash128> hashes) const;
    PathLease lease(const Match& match);
    // The path to a block, to be read by copies: how it rests stays as it is.
    PathLease hold(BlockId last);
    PathLease hold(const Match& match) { return hold(match.last); }

    // Turn the writable block after `path` into a shared read-only one and make it the end of the path. Where
    // an equal block is known already, the path ends on that one and the caller's lease comes back.
    [[nodiscard]] std::optional<BlockLease> freeze(PathLease& path, Hash128 hash, BlockLease lease);

    // Free the block that is worth least of those nobody holds; false where there is none.
    bool evict_one();
    // What the tree goes by when it chooses; the appraiser must outlive it.
    void appraise_by(const Appraiser& appraiser) { appraiser_ = &appraiser; }
    // The time of what happens next.
    void at(std::uint64_t now_us) {
        if (const Ticks now = ticks_of(now_us); now != now_) {
            now_ = now;
            climbing_ = kNoBlock;  // another may be worth less by now
        }
    }
    // The end of a path rests in this class from now on, or will once nobody uses it. Taking it up again undoes it.
    void classify(BlockId block, RestClass rest) noexcept;
    [[nodiscard]] bool holds(BlockId block, Hash128 hash) const {
        return block != kNoBlock && pool_->state(block) == BlockState::frozen && node(block).hash == hash;
    }
    [[nodiscard]] Hash128 hash(BlockId block) const { return node(block).hash; }
    [[nodiscard]] BlockId parent(BlockId block) const { return node(block).parent; }
    [[nodiscard]] RestClass rest(BlockId block) const { return RestClass{static_cast<std::uint8_t>(node(block).rest)}; }
    // Is `block` on the path that ends on `last`?
    [[nodiscard]] bool on_path(BlockId block, BlockId last) const {
        while (last != kNoBlock && last != block) {
            last = node(last).parent;
        }
        return last == block;
    }
    [[nodiscard]] BlockId find(Hash128 hash) const;
    // What keeping the next block to be evicted is worth; nothing where none rests.
    [[nodiscard]] std::optional<std::uint64_t> worth_least() const;
    // A block that comes to rest now in this class would be worth so much.
    [[nodiscard]] std::uint64_t worth_of(RestClass rest) const {
        return appraiser_ == nullptr ? 0 : appraiser_->worth(rest, 0);
    }

    // The memory of `block` does not hold what was stored: it and all that follows it are never found again. The
    // one operation that looks at every node; a corrupt block is rare. Returns how many nodes it was.
    std::int32_t condemn(BlockId block);
    [[nodiscard]] bool condemned(BlockId block) const {
        return block != kNoBlock && rest(block) >= kRestCondemned;
    }

    [[nodiscard]] std::int32_t evictable() const { return frozen_ - in_use_; }
    [[nodiscard]] std::int32_t frozen() const { return frozen_; }
    [[nodiscard]] std::int64_t evictions() const { return evictions_; }
    [[nodiscard]] std::uint64_t digest(std::uint64_t seed) const;
    // Asserts I3 and I4, given how many paths end on each block.
    void check_tree(std::span<const std::int32_t> paths_ending) const;

 private:
    friend class PathLease;
    struct Node {
        Hash128 hash;
        BlockId parent = kNoBlock;
        std::int32_t uses = 0;
        std::uint32_t children : 24 = 0;
        std::uint32_t rest : 8 = static_cast<std::uint32_t>(kRestUnknown);
        BlockId older = kNoBlock;
        BlockId younger = kNoBlock;
        Ticks rested = 0;  // when it came to rest
    };
    static_assert(sizeof(Node) <= 40, "a node is compact");
    // Index entries of a block: bit_ceil of 1.5 to a block is less than 3.
    static_assert(sizeof(Node) + 3 * sizeof(std::int32_t) + Pool::kBytesPerBlock <= 64,
                  "a cached block costs at most 64 bytes, all told");

    Node& node(BlockId block) { return nodes_[block.index()]; }
    [[nodiscard]] const Node& node(BlockId block) const { return nodes_[block.index()]; }
    void use(BlockId block) noexcept;
    void unuse(BlockId block) noexcept;

    void index_insert(BlockId block);
    void index_erase(BlockId block);

    struct List {  // of resting leaves, by age
        BlockId oldest = kNoBlock;
        BlockId youngest = kNoBlock;
    };
    List& list_of(const Node& at) { return lists_[at.rest]; }
    void link_youngest(BlockId block) noexcept;
    void link_oldest(BlockId block) noexcept;
    void unlink(BlockId block) noexcept;
    // A leaf that nobody uses leaves the tree, and condemned parents that it leaves so; the pool takes it as `to`.
    void remove(BlockId block, BlockState to) noexcept;
    [[nodiscard]] BlockState gone_as(BlockId block) const {
        return rest(block) == kRestCorrupt ? BlockState::quarantined : BlockState::free;
    }
    // The leaf to evict; nothing where none rests.
    [[nodiscard]] BlockId victim() const;

    Pool* pool_;
    std::vector<Node> nodes_;          // by block id
    std::vector<std::int32_t> index_;  // open addressing, linear probing: a block id or -1
    std::uint64_t index_mask_;
    std::array<List, kRestClasses> lists_;
    const Appraiser* appraiser_ = nullptr;
    BlockId climbing_ = kNoBlock;  // the parent of the block evicted last, where that left it a leaf
    Ticks now_ = 0;
    std::int32_t frozen_ = 0;
    std::int32_t in_use_ = 0;  // condemned ones included
    std::int64_t evictions_ = 0;
};

}  // namespace tokenspeed
