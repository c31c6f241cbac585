// SPDX-License-Identifier: MIT
#include "sched/tiers.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "sched/reason.h"

namespace tokenspeed {

Tiers::Tiers(const Options& options, Pool& pool, PrefixTree& tree, const Retention& retention, EventLog& log)
    : options_(options), retention_(retention), log_(log), device_pool_(pool), device_tree_(tree) {
    const auto make = [&](std::int32_t blocks) {
        auto tier = std::make_unique<Tier>(blocks, options.block_tokens);
        if (options.retention) {
            tier->tree.appraise_by(retention_);
        }
        return tier;
    };
    if (options.tiers && options.host_blocks > 0) {
        host_ = make(options.host_blocks);
    }
    if (options.tiers && options.disk_blocks > 0) {
        disk_ = make(options.disk_blocks);
    }
    ways_.reserve(kWaysMost);
}

void Tiers::at(std::uint64_t now_us) {
    now_us_ = now_us;
    for (Tier* const each : {host_.get(), disk_.get()}) {
        if (each != nullptr) {
            each->tree.at(now_us);
        }
    }
}

PrefixTree& Tiers::tree(TierKind kind) {
    return kind == TierKind::device ? device_tree_ : kind == TierKind::host ? host_->tree : disk_->tree;
}

Pool& Tiers::pool(TierKind kind) {
    return kind == TierKind::device ? device_pool_ : kind == TierKind::host ? host_->pool : disk_->pool;
}

std::optional<TierKind> Tiers::below(TierKind kind) const {
    if (kind == TierKind::device && host_ != nullptr) {
        return TierKind::host;
    }
    return kind != TierKind::disk && disk_ != nullptr ? std::optional(TierKind::disk) : std::nullopt;
}

std::optional<BlockLease> Tiers::try_block(TierKind kind) {
    if (pool(kind).blocks_in(BlockState::free) == 0) {
        tree(kind).evict_one();
    }
    return pool(kind).try_lease();
}

void Tiers::rest(BlockId leaf) {
    if (any() && leaf != kNoBlock) {
        writes_.push_back({TierKind::device, leaf, device_tree_.hash(leaf)});
        if (writes_.size() > kWritesMost) {
            writes_.pop_front();
        }
    }
}

void Tiers::classify(Hash128 leaf, RestClass rest) {
    for (Tier* const each : {host_.get(), disk_.get()}) {
        if (each != nullptr) {
            if (const BlockId block = each->tree.find(leaf); block != kNoBlock) {
                each->tree.classify(block, rest);
            }
        }
    }
}

bool Tiers::fetch(const Ledger& ledger, std::int32_t hit_blocks_max, std::int32_t blocks_available,
                  std::int32_t blocks_needed) {
    if (!any()) {
        return false;
    }
    Fetch& fetch = fetches_[ledger.id()];
    if (fetch.under_way) {
        if (now_us_ < fetch.late_us) {
            return true;
        }
        if (fetch.tries < kTriesMost) {
            fetch.tries = kTriesMost;  // said once
            ++counters_.fetches_late;
            log_.add(EventKind::decision, {static_cast<std::uint64_t>(Reason::fetch_late), ledger.id().value, 0});
        }
        return false;
    }
    if (fetch.tries >= kTriesMost || ways_.size() == kWaysMost) {
        return false;
    }
    const auto known = ledger.block_hashes();
    const auto hashes = known.first(std::min(static_cast<std::size_t>(hit_blocks_max), known.size()));
    const PrefixTree::Match here = device_tree_.match(hashes);
    if (blocks_needed - here.size > blocks_available - (here.size - here.in_use)) {
        return false;  // no room to fetch it to, nor to run it
    }
    for (const TierKind from : {TierKind::host, TierKind::disk}) {
        if (tier(from) != nullptr && start_fetch(ledger, hashes, fetch, from, here.size)) {
            return true;
        }
    }
    return false;
}

bool Tiers::start_fetch(const Ledger& ledger, std::span<const Hash128> hashes, Fetch& fetch, TierKind from,
                        std::int32_t found) {
    const PrefixTree::Match there = tree(from).match(hashes);
    if (there.size <= found) {
        return false;
    }
    PathLease source = tree(from).hold(there.last);
    PathLease path = device_tree_.hold(device_tree_.match(hashes.first(static_cast<std::size_t>(found))).last);
    BlockList targets(device_pool_);
    targets.reserve(static_cast<std::size_t>(there.size - found));
    for (std::int32_t i = found; i < there.size; ++i) {
        std::optional<BlockLease> lease = try_block(TierKind::device);
        check(lease.has_value(), Invariant::I1, "available blocks cannot be had");
        targets.push(std::move(*lease));
    }
    fetch.under_way = true;
    ++fetch.tries;
    fetch.late_us = now_us_ + options_.copy_late_us;
    ways_.push_back({from, TierKind::device, ledger.id(),
                     Transfer(next_id_, std::move(source), std::move(path), std::move(targets))});
    next_id_ = ways_.back().transfer.end_id();
    log_.add(EventKind::decision, {static_cast<std::uint64_t>(Reason::fetched), ledger.id().value,
                                   static_cast<std::uint64_t>(there.size - found)});
    return true;
}

void Tiers::forget(RequestId request) {
    const auto found = fetches_.find(request);
    if (found == fetches_.end()) {
        return;
    }
    const Fetch fetch = found->second;
    fetches_.erase(found);
    if (device_tree_.holds(fetch.leaf, fetch.hash) && device_tree_.rest(fetch.leaf) == kRestExpected) {
        device_tree_.classify(fetch.leaf, kRestUnknown);
    }
}

void Tiers::plan(PlanBuffer& plan) {
    for (const bool upward : {true, false}) {
        for (Way& way : ways_) {
            if ((way.to == TierKind::device) == upward) {
                issue(plan, way);
            }
        }
    }
    for (std::size_t left = writes_.size(); left > 0 && plan.copy_ids.room() > 0 && ways_.size() < kWaysMost;
         --left) {
        const Write next = writes_.front();
        writes_.pop_front();
        const std::size_t before = ways_.size();
        write(next);
        if (ways_.size() > before) {
            issue(plan, ways_.back());
        }
    }
}

void Tiers::issue(PlanBuffer& plan, Way& way) {
    while (plan.copy_ids.room() > 0 && way.transfer.unissued() > 0) {
        plan.copy_ids.push(way.transfer.next_id());
        const Transfer::Copy copy = way.transfer.issue(tree(way.from));
        plan.copy_from_tiers.push(static_cast<std::uint8_t>(way.from));
        plan.copy_to_tiers.push(static_cast<std::uint8_t>(way.to));
        plan.copy_from.push(copy.from.value);
        plan.copy_to.push(copy.to.value);
        for (const std::uint64_t word : {copy.hash.low, copy.hash.high, copy.parent.low, copy.parent.high}) {
            plan.copy_hashes.push(word);
        }
    }
}

void Tiers::write(const Write& write) {
    const std::optional<TierKind> to = below(write.from);
    PrefixTree& from_tree = tree(write.from);
    if (!to || !from_tree.holds(write.leaf, write.hash) || from_tree.condemned(write.leaf)) {
        return;
    }
    for (const Way& way : ways_) {
        if (way.from == write.from && way.transfer.from().last() == write.leaf) {
            return;  // it is on its way
        }
    }
    const RestClass rest = from_tree.rest(write.leaf);
    PathLease source = from_tree.hold(write.leaf);
    blocks_.resize(static_cast<std::size_t>(source.size()));
    source.copy_blocks(blocks_);
    hashes_.clear();
    for (const std::int32_t block : blocks_) {
        hashes_.push_back(from_tree.hash(BlockId{block}));
    }
    PrefixTree& to_tree = tree(*to);
    const PrefixTree::Match there = to_tree.match(hashes_);
    if (there.size == source.size()) {  // whole
        to_tree.classify(there.last, rest);
        if (*to == TierKind::host && disk_ != nullptr) {
            writes_.push_back({TierKind::host, there.last, to_tree.hash(there.last)});
        }
        return;
    }
    PathLease path = to_tree.hold(there.last);
    BlockList targets(pool(*to));
    const std::uint64_t worth = to_tree.worth_of(rest);
    while (targets.size() < std::min(source.size() - there.size, kBlocksPerWriteBack)) {
        if (pool(*to).blocks_in(BlockState::free) == 0 && to_tree.worth_least().value_or(~std::uint64_t{0}) > worth) {
            break;  // what it would push out is worth more
        }
        std::optional<BlockLease> lease = try_block(*to);
        if (!lease) {
            break;
        }
        targets.push(std::move(*lease));
    }
    if (targets.size() > 0) {
        ways_.push_back({write.from, *to, RequestId{},
                         Transfer(next_id_, std::move(source), std::move(path), std::move(targets))});
        next_id_ = ways_.back().transfer.end_id();
    }
}

bool Tiers::transferred(std::uint64_t copy, CopyResult result) {
    const auto after = std::ranges::upper_bound(ways_, copy, {}, [](const Way& way) { return way.transfer.first_id(); });
    if (after == ways_.begin() || copy >= std::prev(after)->transfer.end_id()) {
        return false;  // landed already, or never was
    }
    Way& way = *std::prev(after);
    const std::int32_t reported = way.transfer.reported();
    way.transfer.report(copy, result);
    if (way.transfer.reported() == reported) {
        return false;
    }
    (way.to == TierKind::device ? counters_.blocks_promoted : counters_.blocks_demoted) +=
        result == CopyResult::done ? 1 : 0;
    counters_.copies_failed += result == CopyResult::failed ? 1 : 0;
    counters_.copies_corrupt += result == CopyResult::corrupt ? 1 : 0;
    if (!way.transfer.landed()) {
        return false;
    }
    land(static_cast<std::size_t>(std::prev(after) - ways_.begin()));
    return true;
}

void Tiers::land(std::size_t index) {
    Way way = std::move(ways_[index]);
    ways_.erase(ways_.begin() + static_cast<std::ptrdiff_t>(index));
    PrefixTree& from_tree = tree(way.from);
    PrefixTree& to_tree = tree(way.to);
    const BlockId source = way.transfer.from().last();
    const Hash128 hash = from_tree.hash(source);
    const BlockId corrupt = way.transfer.corrupt();
    const std::int32_t before = way.transfer.to().size();
    PathLease path = std::move(way.transfer).land(from_tree, to_tree);
    const std::int32_t landed = path.size() - before;
    if (path.last() != kNoBlock) {
        if (way.to != TierKind::device) {
            if (!from_tree.condemned(source)) {
                to_tree.classify(path.last(), from_tree.rest(source));
            }
            if (landed > 0) {
                writes_.push_front({way.from, source, hash});  // what is left of it, or on to the next tier
            }
        } else if (const auto found = fetches_.find(way.request); found != fetches_.end()) {
            to_tree.classify(path.last(), kRestExpected);
            found->second.under_way = false;
            found->second.leaf = path.last();
            found->second.hash = to_tree.hash(path.last());
        }
    } else if (const auto found = fetches_.find(way.request); found != fetches_.end()) {
        found->second.under_way = false;
    }
    if (corrupt != kNoBlock && way.from == TierKind::device) {
        corrupt_.push_back(corrupt);
    } else if (corrupt != kNoBlock) {
        condemn(way.from, corrupt);
    }
}

void Tiers::condemn(TierKind kind, BlockId block) {
    log_.add(EventKind::decision, {static_cast<std::uint64_t>(Reason::quarantined),
                                   static_cast<std::uint64_t>(block.value), static_cast<std::uint64_t>(kind)});
    if (pool(kind).state(block) == BlockState::frozen && !tree(kind).condemned(block)) {
        (void)tree(kind).condemn(block);
    }
}

std::int32_t Tiers::adopt(TierKind kind, std::span<const std::int32_t> blocks, std::span<const Hash128> hashes,
                          std::span<const Hash128> parents) {
    if (tier(kind) == nullptr) {
        return 0;
    }
    const auto less = [](const Hash128& a, const Hash128& b) {
        return a.low != b.low ? a.low < b.low : a.high < b.high;
    };
    std::vector<std::size_t> order(blocks.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
        order[i] = i;
    }
    std::ranges::sort(order, less, [&](std::size_t i) { return hashes[i]; });
    const auto find = [&](Hash128 hash) -> std::optional<std::size_t> {
        const auto at = std::ranges::lower_bound(order, hash, less, [&](std::size_t i) { return hashes[i]; });
        return at != order.end() && hashes[*at] == hash ? std::optional(*at) : std::nullopt;
    };
    std::vector<std::optional<BlockLease>> leases = pool(kind).claim(blocks);
    PrefixTree& to = tree(kind);
    std::int32_t placed = 0;
    std::vector<std::size_t> chain;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        chain.clear();
        Hash128 hash = hashes[i];
        std::optional<std::size_t> at = i;
        while (at && leases[*at] && hash != Hash128{} && to.find(hash) == kNoBlock && chain.size() <= blocks.size()) {
            chain.push_back(*at);
            hash = parents[*at];
            at = find(hash);
        }
        if (hash != Hash128{} && to.find(hash) == kNoBlock) {
            continue;  // what comes before it is not there
        }
        PathLease path = to.hold(hash == Hash128{} ? kNoBlock : to.find(hash));
        for (auto each = chain.rbegin(); each != chain.rend(); ++each) {
            (void)to.freeze(path, hashes[*each], std::move(*leases[*each]));
            leases[*each].reset();
            ++placed;
        }
    }
    return placed;
}

std::int32_t Tiers::flush() {
    std::int32_t blocks = 0;
    for (Tier* const each : {host_.get(), disk_.get()}) {
        while (each != nullptr && each->tree.evict_one()) {
            ++blocks;
        }
    }
    writes_.clear();
    return blocks;
}

void Tiers::check_tiers() const {
    std::uint64_t id = 0;
    for (const Way& way : ways_) {
        check(way.transfer.first_id() >= id, Invariant::I11, "two transfers have copies of one id");
        id = way.transfer.end_id();
    }
    for (const TierKind kind : {TierKind::host, TierKind::disk}) {
        const Tier* const each = tier(kind);
        if (each == nullptr) {
            continue;
        }
        std::vector<std::int32_t> ending(static_cast<std::size_t>(each->pool.blocks_total()), 0);
        std::int32_t in_flight = 0;
        const auto end = [&](const PathLease& path) {
            if (path.last() != kNoBlock) {
                ++ending[path.last().index()];
            }
        };
        for (const Way& way : ways_) {
            if (way.from == kind) {
                end(way.transfer.from());
            }
            if (way.to == kind) {
                end(way.transfer.to());
                in_flight += way.transfer.targets().size();
                for (std::int32_t i = 0; i < way.transfer.targets().size(); ++i) {
                    check(each->pool.state(way.transfer.targets()[i]) == BlockState::in_flight, Invariant::I11,
                          "the target of a copy is not in flight");
                }
            }
        }
        check(in_flight == each->pool.blocks_in(BlockState::in_flight), Invariant::I11,
              "a block of a tier is in flight without a copy");
        check(each->pool.blocks_in(BlockState::leased) == 0, Invariant::I11, "a block of a tier is leased at rest");
        each->pool.check_counts();
        each->tree.check_tree(ending);
    }
}

std::uint64_t Tiers::digest(std::uint64_t seed) const {
    for (const Tier* const each : {host_.get(), disk_.get()}) {
        seed = each == nullptr ? seed : each->tree.digest(each->pool.digest(seed));
    }
    for (const Way& way : ways_) {
        seed = way.transfer.digest(seed + static_cast<std::uint64_t>(way.to));
    }
    for (const Write& each : writes_) {
        const std::array<std::uint64_t, 2> fields{each.hash.low, static_cast<std::uint64_t>(each.from)};
        seed = digest_of(seed, std::span<const std::uint64_t>(fields));
    }
    std::uint64_t fetches = 0;  // in no order
    for (const auto& [request, fetch] : fetches_) {
        fetches += digest_of(request.value + 1, std::span<const std::int32_t>(&fetch.tries, 1)) +
                   (fetch.under_way ? 1 : 0);
    }
    return any() ? digest_of(seed, std::span<const std::uint64_t>(&fetches, 1)) : seed;
}

}  // namespace tokenspeed
