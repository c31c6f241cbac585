// SPDX-License-Identifier: MIT
// Tiers: which resting KV is written down to the host and the disk, and which comes up before its request runs.
//
//   device  --write back, as soon as a session rests-->  host  --once it is whole there-->  disk
//   device  <------------ fetch, before admission -----------------------------------------
//
// Written early, dropped late: a block on the device that has a copy below is evicted at no cost, and comes back
// for a copy instead of a prefill. A lower tier evicts by the same worths (sched/retention.h), and nothing is
// written down that is worth less than what it would push out. Every block on its way belongs to a Transfer
// (kv/transfer.h). A copy that failed, or is late, leaves its request to what is there: it is recomputed. What was
// fetched rests in a class of its own, evicted last, until its request is bound or leaves: so a request never
// waits for blocks that another one's fetch keeps from it.
//
// Decides and accounts; the executor copies. Reads no clock.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kv/transfer.h"
#include "request/ledger.h"
#include "sched/event_log.h"
#include "sched/options.h"
#include "sched/plan.h"
#include "sched/retention.h"

namespace tokenspeed {

struct TierCounters {
    std::int64_t blocks_demoted = 0;   // written to a lower tier
    std::int64_t blocks_promoted = 0;  // brought to the device
    std::int64_t copies_failed = 0;
    std::int64_t copies_corrupt = 0;
    std::int64_t fetches_late = 0;  // requests that did not wait longer
};

class Tiers {
 public:
    Tiers(const Options& options, Pool& pool, PrefixTree& tree, const Retention& retention, EventLog& log);

    void at(std::uint64_t now_us);
    [[nodiscard]] bool any() const { return host_ != nullptr || disk_ != nullptr; }

    // A history on the device rests, to its block `leaf`: write down what the tier below does not have.
    void rest(BlockId leaf);
    // How it rests has changed: its copy below rests the same way.
    void classify(Hash128 leaf, RestClass rest);
    // Should a request wait, for its KV is on the way up? Starts the way where there is one; `blocks` that it
    // needs on the device, and more that others may need, must be available.
    bool fetch(const Ledger& ledger, std::int32_t hit_blocks_max, std::int32_t blocks_available,
               std::int32_t blocks_needed);
    // The request is bound, or has left.
    void forget(RequestId request);
    // Put copies into a plan, those upward first.
    void plan(PlanBuffer& plan);
    // What became of a copy; true where a transfer has come to its end.
    bool transferred(std::uint64_t copy, CopyResult result);
    // Blocks that a tier has held since before this scheduler: their hashes and those of the blocks before them.
    // Returns how many could be placed; the others are free.
    std::int32_t adopt(TierKind kind, std::span<const std::int32_t> blocks, std::span<const Hash128> hashes,
                       std::span<const Hash128> parents);
    // A block of a lower tier does not hold what was stored.
    void condemn(TierKind kind, BlockId block);
    // Blocks of the device that copies found corrupt since the last call.
    std::vector<BlockId> take_corrupt() { return std::exchange(corrupt_, {}); }
    // Drop all that rests below; how many blocks.
    std::int32_t flush();

    [[nodiscard]] const Tier* tier(TierKind kind) const {
        return kind == TierKind::host ? host_.get() : disk_.get();
    }
    [[nodiscard]] std::size_t transfers() const { return ways_.size(); }
    [[nodiscard]] const TierCounters& counters() const { return counters_; }
    // Visit what transfers hold on the device: paths, and blocks in flight.
    template <class Paths, class Blocks>
    void visit_device(Paths&& path, Blocks&& blocks) const {
        for (const Way& way : ways_) {
            if (way.from == TierKind::device) {
                path(way.transfer.from());
            }
            if (way.to == TierKind::device) {
                path(way.transfer.to());
                blocks(way.transfer.targets());
            }
        }
    }
    // Asserts I11, and I1, I3, I4 of the lower tiers.
    void check_tiers() const;
    [[nodiscard]] std::uint64_t digest(std::uint64_t seed) const;

 private:
    static constexpr std::size_t kWaysMost = 32;
    static constexpr std::int32_t kBlocksPerWriteBack = 256;
    static constexpr std::size_t kWritesMost = 4096;
    static constexpr std::int32_t kTriesMost = 3;

    struct Way {
        TierKind from;
        TierKind to;
        RequestId request;  // of a fetch
        Transfer transfer;
    };
    struct Write {  // to be written down
        TierKind from;
        BlockId leaf;
        Hash128 hash;
    };
    struct Fetch {  // of a waiting request
        bool under_way = false;
        std::int32_t tries = 0;
        std::uint64_t late_us = 0;  // when the request waits no longer
        BlockId leaf = kNoBlock;    // where what was fetched ends
        Hash128 hash{};
    };

    PrefixTree& tree(TierKind kind);
    Pool& pool(TierKind kind);
    [[nodiscard]] std::optional<TierKind> below(TierKind kind) const;
    std::optional<BlockLease> try_block(TierKind kind);
    void write(const Write& write);
    bool start_fetch(const Ledger& ledger, std::span<const Hash128> hashes, Fetch& fetch, TierKind from,
                     std::int32_t found);
    void land(std::size_t index);
    void issue(PlanBuffer& plan, Way& way);

    const Options& options_;
    const Retention& retention_;
    EventLog& log_;
    Pool& device_pool_;
    PrefixTree& device_tree_;
    std::unique_ptr<Tier> host_;
    std::unique_ptr<Tier> disk_;
    std::uint64_t now_us_ = 0;
    std::uint64_t next_id_ = 1;
    std::vector<Way> ways_;  // by first id; at most kWaysMost
    std::deque<Write> writes_;
    std::unordered_map<RequestId, Fetch> fetches_;
    TierCounters counters_;
    std::vector<BlockId> corrupt_;
    std::vector<std::int32_t> blocks_;  // scratch
    std::vector<Hash128> hashes_;       // scratch
};

}  // namespace tokenspeed
