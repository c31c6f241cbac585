// SPDX-License-Identifier: MIT
// PlanBuffer, OutcomeBuffer: what control tells the executor and what it tells the front, in preallocated
// memory.
//
// R rows (decode rows first), T tokens, D table deltas, A newly bound requests, G groups. The memory belongs to the
// caller (the binding gives it numpy arrays), is laid out once and never moves. A plan is valid until its
// commit.
#pragma once

#include <cstdint>

#include "base/bounded.h"
#include "base/ids.h"
#include "sched/options.h"
#include "sched/step_cost.h"

namespace tokenspeed {

struct PlanBuffer {
    StepId step{};
    std::int32_t decode_rows = 0;
    std::int32_t samples = 0;
    Work work{};  // what the step has to do
    // per row
    Bounded<std::uint64_t> request_ids;
    Bounded<std::int32_t> slots;
    Bounded<std::int32_t> starts;   // position of the first new token = tokens already in KV
    Bounded<std::int32_t> lengths;  // new tokens
    Bounded<std::uint8_t> sampled;  // this row yields a token
    // per token
    Bounded<std::int32_t> tokens;  // -1: the slot's last sampled token, still in flight
    // per table delta: table[slot, index] = block, applied before the launch, in this order
    Bounded<std::int32_t> table_slots;
    Bounded<std::int32_t> table_indexes;
    Bounded<std::int32_t> table_blocks;
    // per newly bound request
    Bounded<std::int32_t> bound_slots;
    Bounded<std::uint64_t> bound_request_ids;
    Bounded<std::int32_t> cached_tokens;
    Bounded<std::uint8_t> miss_reasons;  // MissReason: why no more was found
    // decode rows that begin with the same blocks: G groups, their rows one group after another
    Bounded<std::int32_t> group_rows;
    Bounded<std::int32_t> group_sizes;   // rows of each group, at least 2
    Bounded<std::int32_t> group_blocks;  // leading blocks that the rows of each have in common

    // C blocks to copy between tiers (TierKind), beside the step; each is reported by its id
    Bounded<std::uint64_t> copy_ids;
    Bounded<std::uint8_t> copy_from_tiers;
    Bounded<std::uint8_t> copy_to_tiers;
    Bounded<std::int32_t> copy_from;      // block of the tier it comes from
    Bounded<std::int32_t> copy_to;        // block of the tier it goes to
    Bounded<std::uint64_t> copy_hashes;   // four words each: its hash, that of the block before it

    // What stamps are bound to (a half of the block's hash), where the executor keeps them: F blocks that were frozen
    // since the last plan, and the U cached blocks of newly bound requests, one request after another.
    Bounded<std::int32_t> frozen_blocks;
    Bounded<std::uint64_t> frozen_names;
    Bounded<std::uint64_t> cached_names;

    template <class Visit>
    void visit(Visit&& each, const Options& options) {
        const auto copies = options.tiers ? static_cast<std::size_t>(options.copies_per_step_max) : 0;
        const auto rows = static_cast<std::size_t>(options.rows_per_step_max);
        const auto deltas = static_cast<std::size_t>(options.deltas_per_step_max());
        each(request_ids, rows);
        each(slots, rows);
        each(starts, rows);
        each(lengths, rows);
        each(sampled, rows);
        each(tokens, static_cast<std::size_t>(options.tokens_per_step_max));
        each(table_slots, deltas);
        each(table_indexes, deltas);
        each(table_blocks, deltas);
        each(bound_slots, rows);
        each(bound_request_ids, rows);
        each(cached_tokens, rows);
        each(group_rows, rows);
        each(group_sizes, rows);
        each(group_blocks, rows);
        each(copy_ids, copies);
        each(copy_from_tiers, copies);
        each(copy_to_tiers, copies);
        each(copy_from, copies);
        each(copy_to, copies);
        each(copy_hashes, 4 * copies);
        const std::size_t stamps = options.stamps ? deltas : 0;
        each(frozen_blocks, stamps);
        each(frozen_names, stamps);
        each(cached_names, stamps);
        each(miss_reasons, rows);
    }

    void clear();
    void add_delta(SlotId slot, std::int32_t index, BlockId block);
    [[nodiscard]] std::int32_t rows() const { return count_of(request_ids); }
    [[nodiscard]] std::uint64_t digest() const;
};

struct OutcomeBuffer {
    Bounded<std::uint64_t> request_ids;
    Bounded<std::int32_t> tokens;    // -1: none
    Bounded<std::uint8_t> finishes;  // FinishReason

    template <class Visit>
    void visit(Visit&& each, const Options& options) {
        const auto most = static_cast<std::size_t>(options.outcomes_max());
        each(request_ids, most);
        each(tokens, most);
        each(finishes, most);
    }

    void clear();
};

}  // namespace tokenspeed
