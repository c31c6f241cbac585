// SPDX-License-Identifier: MIT
#include "sched/plan.h"

#include <algorithm>
#include <array>

#include "base/hash.h"

namespace tokenspeed {

void PlanBuffer::clear() {
    step = StepId{};
    decode_rows = samples = 0;
    work = Work{};
    request_ids.clear();
    slots.clear();
    starts.clear();
    lengths.clear();
    sampled.clear();
    tokens.clear();
    table_slots.clear();
    table_indexes.clear();
    table_blocks.clear();
    bound_slots.clear();
    bound_request_ids.clear();
    cached_tokens.clear();
    group_rows.clear();
    group_sizes.clear();
    group_blocks.clear();
    copy_ids.clear();
    copy_from_tiers.clear();
    copy_to_tiers.clear();
    copy_from.clear();
    copy_to.clear();
    copy_hashes.clear();
    frozen_blocks.clear();
    frozen_names.clear();
    cached_names.clear();
    miss_reasons.clear();
}

void PlanBuffer::add_delta(SlotId slot, std::int32_t index, BlockId block) {
    table_slots.push(slot.value);
    table_indexes.push(index);
    table_blocks.push(block.value);
}

std::uint64_t PlanBuffer::digest() const {
    std::uint64_t digest = step.value;
    digest = digest_of(digest, request_ids.values());
    digest = digest_of(digest, slots.values());
    digest = digest_of(digest, starts.values());
    digest = digest_of(digest, lengths.values());
    // Which tokens is no decision; how many, and which of them are still in flight, is.
    const auto in_flight = std::ranges::count(tokens.values(), -1);
    const std::array<std::int64_t, 2> counts{static_cast<std::int64_t>(tokens.size()), in_flight};
    digest = digest_of(digest, std::span<const std::int64_t>(counts));
    digest = digest_of(digest, table_slots.values());
    digest = digest_of(digest, table_indexes.values());
    digest = digest_of(digest, table_blocks.values());
    digest = digest_of(digest, cached_tokens.values());
    digest = digest_of(digest, group_rows.values());
    digest = digest_of(digest, group_sizes.values());
    digest = digest_of(digest, group_blocks.values());
    digest = digest_of(digest, copy_ids.values());
    digest = digest_of(digest, copy_from.values());
    return digest_of(digest, copy_to.values());
}

void OutcomeBuffer::clear() {
    request_ids.clear();
    tokens.clear();
    finishes.clear();
}

}  // namespace tokenspeed
