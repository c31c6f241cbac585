// SPDX-License-Identifier: MIT
#include <concepts>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "kv/pool.h"
#include "kv/prefix_tree.h"
#include "kv/table.h"
#include "test.h"

using namespace tokenspeed;

static_assert(!std::copy_constructible<BlockLease> && !std::is_copy_assignable_v<BlockLease>);
static_assert(!std::copy_constructible<BlockList> && !std::is_copy_assignable_v<BlockList>);
static_assert(!std::copy_constructible<PathLease> && !std::is_copy_assignable_v<PathLease>);
static_assert(!std::copy_constructible<Table>);
static_assert(std::is_nothrow_move_constructible_v<Table>);

namespace {

Hash128 hash_of(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15U, n}; }

struct Kv {
    Pool pool;
    PrefixTree tree;
    explicit Kv(std::int32_t blocks) : pool(KvKind::full_attention, blocks, 4), tree(pool) {}

    // A path of frozen blocks named by hashes first, first + 1, ...
    PathLease path(std::uint64_t first, int blocks) {
        PathLease path(tree);
        for (int i = 0; i < blocks; ++i) {
            (void)tree.freeze(path, hash_of(first + static_cast<std::uint64_t>(i)), *pool.try_lease());
        }
        return path;
    }
    void check(const std::vector<const PathLease*>& paths) const {
        std::vector<std::int32_t> ending(static_cast<std::size_t>(pool.blocks_total()), 0);
        for (const PathLease* path : paths) {
            if (path->last() != kNoBlock) {
                ++ending[path->last().index()];
            }
        }
        pool.check_counts();
        tree.check_tree(ending);
    }
};

}  // namespace

TEST(a_lease_gives_its_block_back) {
    Kv kv(2);
    {
        const auto one = kv.pool.try_lease();
        auto two = kv.pool.try_lease();
        EXPECT(one->block() != two->block());
        EXPECT(!kv.pool.try_lease().has_value());
        EXPECT(kv.pool.blocks_in(BlockState::leased) == 2);
        BlockLease moved = std::move(*two);
        two.reset();
        EXPECT(kv.pool.blocks_in(BlockState::leased) == 2);
    }
    EXPECT(kv.pool.blocks_in(BlockState::free) == 2);
    kv.check({});
}

TEST(a_list_keeps_order_and_gives_back) {
    Kv kv(4);
    BlockList list(kv.pool);
    for (int i = 0; i < 3; ++i) {
        list.push(*kv.pool.try_lease());
    }
    const BlockId second = list[1];
    (void)list.pop_front();
    EXPECT(list.size() == 2 && list[0] == second);
    EXPECT(kv.pool.blocks_in(BlockState::free) == 2);
    BlockList moved = std::move(list);
    EXPECT(list.size() == 0 && moved.size() == 2);
    moved.enter_flight();
    EXPECT(kv.pool.blocks_in(BlockState::in_flight) == 2);
    moved.clear();
    EXPECT(kv.pool.blocks_in(BlockState::free) == 4);
    EXPECT_THROWS(InvariantError, (void)moved.pop_front());
    kv.check({});
}

TEST(a_list_takes_leases_of_its_own_pool_only) {
    Kv kv(1);
    Kv other(1);
    BlockList list(kv.pool);
    EXPECT_THROWS(InvariantError, list.push(*other.pool.try_lease()));
    EXPECT(other.pool.blocks_in(BlockState::free) == 1);
}

TEST(match_follows_the_chain_and_lease_holds_the_path) {
    Kv kv(8);
    PathLease path = kv.path(1, 3);
    const std::vector<Hash128> chain{hash_of(1), hash_of(2), hash_of(3), hash_of(4)};
    EXPECT(kv.tree.match(chain).size == 3 && kv.tree.match(chain).in_use == 3);
    path.clear();
    EXPECT(kv.tree.evictable() == 3);
    const PrefixTree::Match match = kv.tree.match(chain);
    EXPECT(match.size == 3 && match.in_use == 0);
    PathLease again = kv.tree.lease(match);
    EXPECT(kv.tree.evictable() == 0 && again.size() == 3);
    std::vector<std::int32_t> blocks(3);
    again.copy_blocks(blocks);
    EXPECT(blocks[2] == again.last().value && blocks[0] != blocks[1]);
    EXPECT(!kv.tree.evict_one());
    kv.check({&again});
}

TEST(eviction_takes_the_least_recently_used_leaf_then_its_parent) {
    Kv kv(8);
    PathLease a = kv.path(1, 2);
    PathLease b = kv.path(11, 2);
    a.clear();
    b.clear();
    kv.check({});
    const std::vector<Hash128> chain_a{hash_of(1), hash_of(2)};
    const std::vector<Hash128> chain_b{hash_of(11), hash_of(12)};
    PathLease touched = kv.tree.lease(kv.tree.match(chain_a));
    touched.clear();
    EXPECT(kv.tree.evict_one() && kv.tree.match(chain_b).size == 1);
    EXPECT(kv.tree.evict_one() && kv.tree.match(chain_b).size == 0);
    EXPECT(kv.tree.match(chain_a).size == 2);
    EXPECT(kv.tree.evict_one() && kv.tree.evict_one() && !kv.tree.evict_one());
    EXPECT(kv.pool.blocks_in(BlockState::free) == 8 && kv.tree.evictions() == 4);
    kv.check({});
}

TEST(a_shared_parent_outlives_its_children) {
    Kv kv(8);
    PathLease trunk = kv.path(1, 1);
    PathLease left = kv.tree.lease(kv.tree.match(std::vector{hash_of(1)}));
    PathLease right = kv.tree.lease(kv.tree.match(std::vector{hash_of(1)}));
    EXPECT(!kv.tree.freeze(left, hash_of(2), *kv.pool.try_lease()));
    EXPECT(!kv.tree.freeze(right, hash_of(3), *kv.pool.try_lease()));
    trunk.clear();
    left.clear();
    kv.check({&right});
    EXPECT(kv.tree.evictable() == 1 && kv.tree.evict_one() && !kv.tree.evict_one());
    right.clear();
    EXPECT(kv.tree.evictable() == 2);
    kv.check({});
}

TEST(freezing_an_equal_block_returns_the_lease) {
    Kv kv(4);
    PathLease path = kv.path(1, 1);
    Table table(PathLease(kv.tree), BlockList(kv.pool));
    EXPECT(table.grow(*kv.pool.try_lease()) == 0);
    const BlockId own = table.tail()[0];
    auto redirect = table.freeze_next(kv.tree, hash_of(1));
    EXPECT(redirect && redirect->index == 0 && redirect->canonical == path.last());
    EXPECT(redirect->duplicate.block() == own);
    EXPECT(table.path().last() == path.last() && table.tail().size() == 0);
    kv.check({&path, &table.path()});
}

TEST(a_table_lists_path_then_tail) {
    Kv kv(8);
    Table table(kv.path(1, 2), BlockList(kv.pool));
    EXPECT(table.grow(*kv.pool.try_lease()) == 2);
    std::vector<std::int32_t> blocks(3);
    table.copy_blocks(blocks);
    EXPECT(blocks[1] == table.path().last().value && blocks[2] == table.tail()[0].value);
    table.enter_flight();
    EXPECT(kv.pool.blocks_in(BlockState::in_flight) == 1 && kv.tree.evictable() == 0);
    table.clear();
    EXPECT(kv.tree.evictable() == 2 && kv.pool.blocks_in(BlockState::free) == 6);
    kv.check({});
}

namespace {

// Worth by class alone: the class is its own worth.
struct ByClass final : Appraiser {
    [[nodiscard]] std::uint64_t worth(RestClass rest, Ticks /*age*/) const override {
        return static_cast<std::uint64_t>(rest);
    }
};

RestClass rest(std::uint8_t value) { return RestClass{value}; }

}  // namespace

TEST(eviction_takes_the_class_worth_least_and_leaves_none_of_its_history) {
    Kv kv(8);
    const ByClass by_class;
    kv.tree.appraise_by(by_class);
    PathLease a = kv.path(1, 3);
    PathLease b = kv.path(11, 2);
    kv.tree.classify(a.last(), rest(3));
    kv.tree.classify(b.last(), rest(7));
    b.clear();  // rests first: least recently used, but worth more
    a.clear();
    kv.check({});
    const std::vector<Hash128> chain_a{hash_of(1), hash_of(2), hash_of(3)};
    const std::vector<Hash128> chain_b{hash_of(11), hash_of(12)};
    EXPECT(kv.tree.evict_one() && kv.tree.match(chain_a).size == 2);
    EXPECT(kv.tree.evict_one() && kv.tree.evict_one() && kv.tree.match(chain_a).size == 0);
    EXPECT(kv.tree.match(chain_b).size == 2);
    kv.check({});
}

TEST(a_class_is_changed_at_rest_and_undone_by_use) {
    Kv kv(8);
    const ByClass by_class;
    kv.tree.appraise_by(by_class);
    PathLease a = kv.path(1, 1);
    PathLease b = kv.path(11, 1);
    a.clear();
    b.clear();
    const std::vector<Hash128> chain_a{hash_of(1)};
    const std::vector<Hash128> chain_b{hash_of(11)};
    const BlockId block_a = kv.tree.match(chain_a).last;
    const BlockId block_b = kv.tree.match(chain_b).last;
    EXPECT(kv.tree.holds(block_a, hash_of(1)) && !kv.tree.holds(block_a, hash_of(11)));
    kv.tree.classify(block_a, rest(5));
    kv.tree.classify(block_b, rest(4));
    kv.tree.lease(kv.tree.match(chain_a)).clear();  // used again: of no known class
    kv.check({});
    EXPECT(kv.tree.evict_one() && kv.tree.match(chain_a).size == 0 && kv.tree.match(chain_b).size == 1);
    kv.check({});
}

TEST(random_paths_keep_the_tree_whole) {
    Random random(5);
    Kv kv(24);
    const ByClass by_class;
    kv.tree.appraise_by(by_class);
    std::vector<std::unique_ptr<PathLease>> paths;
    for (int turn = 0; turn < 20000; ++turn) {
        const std::uint64_t dice = random.below(10);
        if (dice < 5) {  // walk one of a few chains as far as it is known, then one block further
            const std::uint64_t chain = random.below(4);
            std::vector<Hash128> hashes;
            for (std::uint64_t i = 0; i < 1 + random.below(9); ++i) {
                hashes.push_back(hash_of(i < 3 ? i : 100 * chain + i));
            }
            auto path = std::make_unique<PathLease>(kv.tree.lease(kv.tree.match(hashes)));
            const auto at = static_cast<std::size_t>(path->size());
            auto lease = kv.pool.try_lease();
            if (lease && at < hashes.size()) {
                (void)kv.tree.freeze(*path, hashes[at], std::move(*lease));
            }
            paths.push_back(std::move(path));
        } else if (dice < 6 && !paths.empty()) {
            const PathLease& path = *paths[random.below(paths.size())];
            if (path.size() > 0) {
                kv.tree.classify(path.last(), rest(static_cast<std::uint8_t>(random.below(static_cast<std::uint64_t>(kRestCondemned)))));
            }
            kv.tree.at(1024 * static_cast<std::uint64_t>(turn / 4));
        } else if (dice < 8 && !paths.empty()) {
            paths.erase(paths.begin() + static_cast<std::ptrdiff_t>(random.below(paths.size())));
        } else {
            (void)kv.tree.evict_one();
        }
        if (turn % 16 == 0) {
            std::vector<const PathLease*> held;
            for (const auto& each : paths) {
                held.push_back(each.get());
            }
            kv.check(held);
        }
    }
}
