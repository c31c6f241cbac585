// SPDX-License-Identifier: MIT
// Pool: the account of the block ids of one KV kind. BlockLease: the right to write one block.
//
//        try_lease            PrefixTree::freeze           eviction
//  free ------------> leased -------------------> frozen ----------> free
//    ^                  |  \                                           .
//    |  ~BlockLease     |   \  BlockList::enter_flight                 .
//    +------------------+    +------------------------> in_flight --> free (~BlockList at retire)
//
// A frozen block whose memory does not hold what was stored leaves the tree for quarantine, and stays there until
// a scrub. A pool knows nothing of requests, tokens or tensors. Every change of state is one move between two
// states, so the counts always sum to the pool (I1). Running out is a value: try_lease returns nothing.
// One pool per KV kind: full attention anchors the prefix tree (a node is named by its block id); a
// sliding-window or recurrent-state pool hangs its own block of a node on the same id.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/bounded.h"
#include "base/ids.h"

namespace tokenspeed {

enum class KvKind : std::uint8_t { full_attention };
enum class BlockState : std::uint8_t { free, leased, frozen, in_flight, quarantined };
inline constexpr std::size_t kBlockStates = 5;

class BlockLease;
class BlockList;
class PrefixTree;

class Pool {
 public:
    static constexpr std::size_t kBytesPerBlock = sizeof(BlockState) + sizeof(BlockId);
    static constexpr std::int32_t kBlocksMost = (1 << 24) - 1;  // a node counts its children in 24 bits

    Pool(KvKind kind, std::int32_t blocks_total, std::int32_t block_tokens);
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    [[nodiscard]] std::optional<BlockLease> try_lease();

    // Leases of these very blocks, nothing where one is not free: they held something before this pool was.
    [[nodiscard]] std::vector<std::optional<BlockLease>> claim(std::span<const std::int32_t> blocks);

    [[nodiscard]] KvKind kind() const { return kind_; }
    [[nodiscard]] std::int32_t block_tokens() const { return block_tokens_; }
    [[nodiscard]] std::int32_t blocks_total() const { return count_of(states_); }
    [[nodiscard]] std::int32_t blocks_in(BlockState state) const {
        return counts_[static_cast<std::size_t>(state)];
    }
    [[nodiscard]] BlockState state(BlockId block) const { return states_[block.index()]; }
    // Every quarantined block is free again: its memory was seen to.
    void scrub() noexcept;
    [[nodiscard]] std::uint64_t digest(std::uint64_t seed) const;
    // Asserts I1 by recounting every block.
    void check_counts() const;

 private:
    friend class BlockLease;
    friend class BlockList;
    friend class PrefixTree;

    void change(BlockId block, BlockState to) noexcept;

    KvKind kind_;
    std::int32_t block_tokens_;
    std::vector<BlockState> states_;
    std::vector<BlockId> free_;  // a stack: the block freed last is leased first
    std::array<std::int32_t, kBlockStates> counts_{};
};

// The only way to a writable block. Move-only; gives its block back when it dies.
class [[nodiscard]] BlockLease {
 public:
    BlockLease(BlockLease&& from) noexcept : pool_(std::exchange(from.pool_, nullptr)), block_(from.block_) {}
    BlockLease& operator=(BlockLease&& from) noexcept;
    BlockLease(const BlockLease&) = delete;
    BlockLease& operator=(const BlockLease&) = delete;
    ~BlockLease() { give_back(); }

    [[nodiscard]] BlockId block() const { return block_; }

 private:
    friend class Pool;
    friend class BlockList;
    friend class PrefixTree;

    BlockLease(Pool& pool, BlockId block) : pool_(&pool), block_(block) {}
    void give_back() noexcept;
    // The block leaves this lease in state `to`; somebody else now answers for it.
    BlockId surrender(BlockState to) &&;

    Pool* pool_;
    BlockId block_;
};

// An ordered list of leases, taken at the front and grown at the back. (A vector of a move-only type claims
// to be copyable, so this type says that it is not.) Holds 4 bytes a lease.
class BlockList {
 public:
    explicit BlockList(Pool& pool) : pool_(&pool) {}
    BlockList(BlockList&& from) noexcept;
    BlockList& operator=(BlockList&& from) noexcept;
    BlockList(const BlockList&) = delete;
    BlockList& operator=(const BlockList&) = delete;
    ~BlockList() { clear(); }

    void push(BlockLease lease);
    BlockLease pop_front();
    void clear() noexcept;
    // From now on these blocks belong to a step that is in flight.
    void enter_flight() noexcept;
    void reserve(std::size_t leases) { blocks_.reserve(leases); }

    [[nodiscard]] std::int32_t size() const { return static_cast<std::int32_t>(blocks_.size() - front_); }
    [[nodiscard]] BlockId operator[](std::int32_t i) const {
        return blocks_[front_ + static_cast<std::size_t>(i)];
    }

 private:
    Pool* pool_;
    std::size_t front_ = 0;
    std::vector<BlockId> blocks_;
};

}  // namespace tokenspeed
