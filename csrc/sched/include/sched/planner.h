// SPDX-License-Identifier: MIT
// Planner: fills one plan. Decode rows first, then the next chunks of prompts in progress, then new
// admissions, each in rank order within the budgets of a step. When a decode row finds no block, the request
// of the greatest rank that has no row in this plan is retracted. Does not know results; reads no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sched/holdings.h"
#include "sched/options.h"
#include "sched/plan.h"

namespace tokenspeed {

class Planner {
 public:
    Planner(const Options& options, Holdings& holdings);

    // Write the plan of `step`; false where nothing can run. Deterministic in options and holdings.
    bool plan(PlanBuffer& plan, StepId step, std::uint64_t now_us);

    // The round robin of decode rows where a step has fewer rows than requests; nothing: from the least rank.
    [[nodiscard]] std::optional<Rank> decode_next() const { return decode_next_; }

 private:
    void name_frozen(PlanBuffer& plan);
    void plan_decodes(PlanBuffer& plan);
    void plan_decode(PlanBuffer& plan, Seat seat);
    void plan_prefills(PlanBuffer& plan);
    // The next chunk of a prompt; true where it was the last (the request left for Decoding).
    bool plan_chunk(PlanBuffer& plan, Seat seat);
    void plan_admissions(PlanBuffer& plan, std::uint64_t now_us);
    // Admit the first of those waiting; false where it does not fit.
    bool admit(PlanBuffer& plan, Seat seat, std::uint64_t now_us);
    // A slot, the cached path, and blocks for the rest of the known tokens; all of it or nothing.
    std::optional<Residence> try_residence(const Ledger& ledger, std::int32_t blocks);
    // Tell the executor of a newly bound request: its slot, its whole table, what of it is cached.
    void announce(PlanBuffer& plan, const Ledger& ledger, const Residence& residence);

    // A block for a decode row: from the pool, or by retracting; nothing where the row must wait or was
    // retracted.
    std::optional<BlockLease> block_for(Seat seat, StepId step);
    [[nodiscard]] std::optional<Place> last_unplanned(StepId step) const;
    void add_row(PlanBuffer& plan, const Ledger& ledger, Residence& residence,
                 std::span<const std::int32_t> tokens, bool sampled);
    // Prompt tokens that this plan still has room for.
    [[nodiscard]] std::int32_t chunk_room(const PlanBuffer& plan) const;

    const Options& options_;
    Holdings& holdings_;
    std::uint64_t bindings_ = 0;
    std::int32_t prefill_tokens_ = 0;  // of the plan being made
    std::size_t frozen_named_ = 0;     // in the plan being made
    std::optional<Rank> decode_next_;
    std::vector<Seat> seats_;  // scratch: the decode rows to visit
};

}  // namespace tokenspeed
