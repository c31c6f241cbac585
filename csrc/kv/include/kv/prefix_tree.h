// SPDX-License-Identifier: MIT
// PrefixTree: the shared history of frozen blocks, found by chained hash. PathLease: the right to read one
// path of it.
//
//   salt A --- b7 --- b2 --- b9        a node is one frozen block and is named by its block id
//                \                     uses = paths that end on it + its children in use
//                 +-- b4               uses 0 and no child: in the LRU list, the next to be evicted
//   salt B --- b1
//
// A path holds its last node only: a node in use keeps its parent in use, so taking the next block of a path,
// or ending a request whose history others share, costs O(1). Frozen blocks are read-only: there is no
// function that writes one. Control state of a block: 40 bytes of node, at most 12 of index, 5 in the pool: 57.
// Does not know requests, tokens or salts: hashes come in ready made.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"
#include "kv/pool.h"

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

    // Turn the writable block after `path` into a shared read-only one and make it the end of the path. Where
    // an equal block is known already, the path ends on that one and the caller's lease comes back.
    [[nodiscard]] std::optional<BlockLease> freeze(PathLease& path, Hash128 hash, BlockLease lease);

    // Free the least recently used block that nobody holds; false where there is none.
    bool evict_one();

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
        std::int32_t children = 0;
        BlockId older = kNoBlock;
        BlockId younger = kNoBlock;
    };
    static_assert(sizeof(Node) <= 40, "a node is compact");

    Node& node(BlockId block) { return nodes_[block.index()]; }
    [[nodiscard]] const Node& node(BlockId block) const { return nodes_[block.index()]; }
    void use(BlockId block) noexcept;
    void unuse(BlockId block) noexcept;

    [[nodiscard]] BlockId find(Hash128 hash) const;
    void index_insert(BlockId block);
    void index_erase(BlockId block);

    enum class End : std::uint8_t { oldest, youngest };
    void link(BlockId block, End end) noexcept;
    void unlink(BlockId block) noexcept;

    Pool* pool_;
    std::vector<Node> nodes_;          // by block id
    std::vector<std::int32_t> index_;  // open addressing, linear probing: a block id or -1
    std::uint64_t index_mask_;
    BlockId oldest_ = kNoBlock;
    BlockId youngest_ = kNoBlock;
    std::int32_t frozen_ = 0;
    std::int32_t in_use_ = 0;
    std::int64_t evictions_ = 0;
};

}  // namespace tokenspeed
