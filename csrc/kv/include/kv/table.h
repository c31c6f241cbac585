// SPDX-License-Identifier: MIT
// Table: the ordered blocks of one request: a read-only path of the prefix tree, then a writable tail of
// leases.
//
//   index   0 ........ path.size()-1 | path.size() ........ size()-1
//           frozen, shared           | leased, this request alone writes them
//
// Tokens land at index position / block_tokens. Freezing moves the border one block to the right; nothing
// else does.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "base/hash.h"
#include "kv/pool.h"
#include "kv/prefix_tree.h"

namespace tokenspeed {

class Table {
 public:
    // An equal block was in the tree already: the table now names `canonical`, and `duplicate` is spare.
    struct Redirect {
        std::int32_t index;
        BlockId canonical;
        BlockLease duplicate;
    };

    Table(PathLease path, BlockList tail) : path_(std::move(path)), tail_(std::move(tail)) {}

    [[nodiscard]] std::int32_t size() const { return path_.size() + tail_.size(); }
    [[nodiscard]] const PathLease& path() const { return path_; }
    [[nodiscard]] const BlockList& tail() const { return tail_; }

    // Make room for a table of `blocks` entries.
    void reserve(std::int32_t blocks) { tail_.reserve(static_cast<std::size_t>(blocks - path_.size())); }
    // Append a block; returns its index.
    std::int32_t grow(BlockLease lease);
    // Freeze the first block of the tail, which is full and whose step has retired.
    std::optional<Redirect> freeze_next(PrefixTree& tree, Hash128 hash);
    void enter_flight() noexcept { tail_.enter_flight(); }
    void clear() noexcept;
    // Write every block id in order; `out` has size() entries.
    void copy_blocks(std::span<std::int32_t> out) const;

 private:
    PathLease path_;
    BlockList tail_;
};

}  // namespace tokenspeed
