// SPDX-License-Identifier: MIT
// Tier: the account of a lower tier of KV: its blocks, and a prefix tree over those that hold something.
// Transfer: blocks on their way from the tree of one tier to that of another, owned by the copies in flight.
//
//   from (held, read)      b0 b1 b2 b3 b4      a path of the tree that has them
//   to   (held)            t0 t1               the path that the other tree has already
//   targets (in flight)          t2 t3 t4      leased there; nobody but the copies may touch them
//
// Copies are issued plan by plan and reported in any order. When the last is in, `land` freezes the leading ones
// that came whole and gives the rest back: a failed copy costs what lies behind it, and nothing else. Until then
// neither side can be evicted, freed or written by anybody, however late the report. Knows no bytes.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/bounded.h"
#include "base/hash.h"
#include "base/ids.h"
#include "kv/pool.h"
#include "kv/prefix_tree.h"

namespace tokenspeed {

enum class TierKind : std::uint8_t { device = 0, host = 1, disk = 2 };

struct Tier {
    Tier(std::int32_t blocks_total, std::int32_t block_tokens)
        : pool(KvKind::full_attention, blocks_total, block_tokens), tree(pool) {}

    // A block to fill, evicting what is worth least where none is free.
    std::optional<BlockLease> try_block() {
        if (pool.blocks_in(BlockState::free) == 0) {
            tree.evict_one();
        }
        return pool.try_lease();
    }

    Pool pool;
    PrefixTree tree;
};

enum class CopyResult : std::uint8_t {
    failed = 0,   // nothing is known of the target; the source is as it was
    done = 1,     // the target holds what the source holds
    corrupt = 2,  // the source does not hold what was stored
};

class Transfer {
 public:
    struct Copy {
        BlockId from;
        BlockId to;
        Hash128 hash;
        Hash128 parent;  // of the block before it; zero where there is none
    };

    // `targets` take the blocks that follow `to` on the path `from`.
    Transfer(std::uint64_t first_id, PathLease from, PathLease to, BlockList targets);
    Transfer(Transfer&&) = default;
    Transfer& operator=(Transfer&&) = default;
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;
    ~Transfer() = default;

    [[nodiscard]] std::uint64_t first_id() const { return first_id_; }
    [[nodiscard]] std::uint64_t end_id() const { return first_id_ + from_blocks_.size(); }
    [[nodiscard]] std::uint64_t next_id() const { return first_id_ + static_cast<std::uint64_t>(issued_); }
    // Copies that no plan carries yet; none is worth it behind one that failed.
    [[nodiscard]] std::int32_t unissued() const { return failed_ ? 0 : targets_.size() - issued_; }
    // The next copy to issue, where there is one; its id is next_id() before the call.
    Copy issue(const PrefixTree& from);
    // What became of a copy; a report that was heard before, or of a copy that was not issued, means nothing.
    void report(std::uint64_t id, CopyResult result);
    // Everything issued is reported, and nothing more will be issued.
    [[nodiscard]] bool landed() const { return reported_ == issued_ && (failed_ || unissued() == 0); }
    [[nodiscard]] std::int32_t reported() const { return reported_; }
    // The source block of the first copy that found it corrupt; kNoBlock where none did.
    [[nodiscard]] BlockId corrupt() const { return corrupt_; }
    // The path of the other tree with all that came whole. Nothing came whole of a source that was condemned.
    PathLease land(const PrefixTree& from, PrefixTree& to) &&;

    [[nodiscard]] const PathLease& from() const { return from_; }
    [[nodiscard]] const PathLease& to() const { return to_; }
    [[nodiscard]] const BlockList& targets() const { return targets_; }
    [[nodiscard]] std::uint64_t digest(std::uint64_t seed) const;

 private:
    std::uint64_t first_id_;
    PathLease from_;
    PathLease to_;
    BlockList targets_;
    std::vector<BlockId> from_blocks_;  // by copy
    std::vector<bool> heard_;           // by copy
    std::int32_t issued_ = 0;
    std::int32_t reported_ = 0;
    std::int32_t good_;  // copies before the first that failed
    bool failed_ = false;
    BlockId corrupt_ = kNoBlock;
};

}  // namespace tokenspeed
