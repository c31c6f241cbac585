// SPDX-License-Identifier: MIT
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "request/ledger.h"
#include "request/slot.h"
#include "request/states.h"
#include "request/transitions.h"
#include "test.h"

using namespace tokenspeed;

namespace {

struct Bench {
    Pool pool{KvKind::full_attention, 8, 4};
    PrefixTree tree{pool};
    SlotPool slots{2};

    static Waiting waiting() {
        const std::vector<std::int32_t> prompt{1, 2, 3, 4, 5};
        return {std::make_unique<Ledger>(RequestId{9}, Rank{1, 1}, Ask{3, 0, {}}, prompt, 0U)};
    }
    Residence residence() {
        Table table{PathLease(tree), BlockList(pool)};
        (void)table.grow(*pool.try_lease());
        (void)table.grow(*pool.try_lease());
        return {*slots.try_lease(), std::move(table), BindingId{1}};
    }
    Decoding decoding() { return on(on(waiting(), Admit{residence()}), LastChunk{}); }
    [[nodiscard]] bool everything_is_back() const {
        return pool.blocks_in(BlockState::free) == 8 && slots.slots_free() == 2;
    }
};

}  // namespace

TEST(a_request_walks_from_waiting_to_finished) {
    Bench bench;
    {
        Prefilling prefilling = on(bench.waiting(), Admit{bench.residence()});
        Prefilling&& same = on(std::move(prefilling), Computed{4});
        EXPECT(&same == &prefilling && same.residence.computed == 4);
        Decoding decoding = on(std::move(prefilling), LastChunk{});
        EXPECT(decoding.samples_in_flight == 1 && bench.pool.blocks_in(BlockState::leased) == 2);
        (void)on(std::move(decoding), Computed{5});
        (void)on(std::move(decoding), Token{77});
        EXPECT(decoding.samples_in_flight == 0 && decoding.ledger->tokens().back() == 77);
        const Finished finished = on(std::move(decoding), Stop{78, FinishReason::stop});
        EXPECT(finished.id == RequestId{9} && finished.token == 78 && finished.leavings.has_value());
        EXPECT(!bench.everything_is_back());
    }
    EXPECT(bench.everything_is_back());
}

TEST(every_end_hands_over_what_the_state_owned) {
    Bench bench;
    EXPECT(!on(bench.waiting(), Cancel{}).leavings.has_value());
    EXPECT(on(on(bench.waiting(), Admit{bench.residence()}), Cancel{}).leavings.has_value());
    EXPECT(on(bench.decoding(), Cancel{}).reason == FinishReason::cancelled);
    EXPECT(on(bench.decoding(), Fail{}).reason == FinishReason::error);
    EXPECT(bench.everything_is_back());
}

TEST(a_retracted_request_keeps_its_tokens_and_loses_its_blocks) {
    Bench bench;
    Decoding decoding = bench.decoding();
    (void)on(std::move(decoding), Token{77});
    Retracted retracted = on(std::move(decoding), Retract{});
    EXPECT(retracted.waiting.ledger->tokens_known() == 6 && retracted.waiting.ledger->output_tokens() == 1);
    retracted.leavings.clear();
    EXPECT(bench.everything_is_back());
}

TEST(a_ledger_hashes_a_block_once_and_when_it_is_full) {
    Ledger ledger(RequestId{1}, Rank{}, Ask{4, 0, {}}, std::vector<std::int32_t>{1, 2, 3, 4, 5}, 0);
    const HashKey key{1, 2};
    const Hash128 root = hash_salt(key, {});
    ledger.hash_blocks(key, root, 4);
    EXPECT(ledger.block_hashes().size() == 1);
    const Hash128 first = hash_block(key, root, ledger.tokens().first(4));
    EXPECT(ledger.block_hashes()[0] == first);
    EXPECT_THROWS(InvariantError, (void)ledger.block_hash(key, 4, 1));
    for (const std::int32_t token : {6, 7, 8}) {
        ledger.append(token);
    }
    EXPECT(ledger.block_hash(key, 4, 1) == hash_block(key, first, ledger.tokens().subspan(4, 4)));
}

TEST(a_slot_comes_back_once) {
    SlotPool slots(1);
    auto lease = slots.try_lease();
    EXPECT(!slots.try_lease());
    SlotLease moved = std::move(*lease);
    lease.reset();
    EXPECT(slots.slots_free() == 0);
    moved.give_back();
    moved.give_back();
    EXPECT(slots.slots_free() == 1);
}
