// SPDX-License-Identifier: MIT
// Planner: fills one plan. Decode rows first, then the next chunks of prompts in progress, then new
// admissions, each in rank order within the budgets of a step. When a decode row finds no block, the request
// of the greatest rank that has no row in this plan is retracted. Does not know results; reads no clock.
//
// With a floor, a step has one budget more: the time until the first next token of somebody is due. Decode rows
// all run; prompts get chunks that fit what is left of it; and a request is admitted only if, with every request
// at its worst, a step of all their decode rows leaves everybody's floor in place.
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
    // The next chunk of a prompt, of `length` tokens; true where it was the last (the request left for Decoding).
    bool plan_chunk(PlanBuffer& plan, Seat seat, std::int32_t length);
    void plan_admissions(PlanBuffer& plan, std::uint64_t now_us);
    // Admit the first of those waiting; false where it does not fit.
    bool admit(PlanBuffer& plan, Seat seat, std::uint64_t now_us);
    // A slot, the cached path, and blocks for the rest of the known tokens; all of it or nothing.
    struct Found {
        std::optional<Residence> residence;
        Reason missing = Reason::none;
    };
    Found try_residence(const Ledger& ledger, std::int32_t blocks, const PlanBuffer& plan);
    // Blocks that an admission leaves for those that run.
    [[nodiscard]] std::int32_t blocks_reserved() const;
    void account_admission(const Ledger& ledger, const Residence& residence, std::uint64_t now_us);
    // Would everybody's floor hold with this request among those that decode?
    bool keeps_floors(Ledger& ledger);
    // Tell the executor of a newly bound request: its slot, its whole table, what of it is cached.
    void announce(PlanBuffer& plan, const Ledger& ledger, const Residence& residence);

    // A block for a decode row: from the pool, or by retracting; nothing where the row must wait or was
    // retracted.
    std::optional<BlockLease> block_for(Seat seat, StepId step);
    // Who gives its blocks to a decode row of this rank: with a floor first one behind it that has said nothing yet.
    [[nodiscard]] std::optional<Place> last_to_yield(StepId step, Rank rank) const;
    [[nodiscard]] std::optional<Place> last_unplanned(StepId step) const;
    void add_row(PlanBuffer& plan, const Ledger& ledger, Residence& residence,
                 std::span<const std::int32_t> tokens, bool sampled, bool decode);
    // Prompt tokens that this plan still has room for, whoever's they are.
    [[nodiscard]] std::int32_t chunk_room(const PlanBuffer& plan) const;
    // The next chunk of a prompt with `remaining` tokens after `planned`: within the room, and the time.
    [[nodiscard]] std::int32_t chunk_length(const PlanBuffer& plan, std::int32_t planned, std::int32_t remaining);
    void note_due(const Decoding& request);

    const Options& options_;
    Holdings& holdings_;
    std::uint64_t bindings_ = 0;
    std::int32_t prefill_tokens_ = 0;  // of the plan being made
    std::size_t frozen_named_ = 0;     // in the plan being made
    double start_us_ = 0;              // when the step can start, at the latest expected
    std::uint64_t due_least_ns_ = 0;   // of the next tokens of decode rows that have a floor
    bool starving_ = false;            // a prompt was left no time by the plan being made
    std::int32_t plans_starved_ = 0;   // in a row
    std::optional<Rank> decode_next_;
    std::vector<Seat> seats_;  // scratch: the decode rows to visit
};

}  // namespace tokenspeed
