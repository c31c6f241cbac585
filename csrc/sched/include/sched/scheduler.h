// SPDX-License-Identifier: MIT
// Scheduler: the only mutable object of the control plane. A function of (options, events): submit, cancel,
// plan, commit, flush, word of sessions come in; plans and outcomes go out. Same events, same decisions: it reads no clock, no
// environment, and draws no random number. One thread at a time.
//
// Not its business: tensors, text, sampling, stop strings (the front cancels), what a slot means on the
// device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/cost_model.h"
#include "sched/holdings.h"
#include "sched/options.h"
#include "sched/plan.h"
#include "sched/planner.h"
#include "sched/retention.h"

namespace tokenspeed {

// What became of a submission: values, for none of these is an error of the engine.
enum class SubmitStatus : std::uint8_t {
    accepted,
    queue_full,    // try later
    too_long,      // prompt and output exceed context_tokens_max
    exceeds_pool,  // would not fit with the whole pool to itself
    duplicate,     // a live request has this id
    empty,         // no prompt token, or no token to produce
    door_full,     // its session is not admitted, and as many requests as may wait for that: try later
};

enum class CommitStatus : std::uint8_t {
    committed,
    late,        // a duplicate, or a step nobody knows: ignored
    wrong_size,  // not one token per sampled row: ignored, the step is still in flight
};

struct Submission {
    RequestId id;
    std::span<const std::int32_t> prompt;
    Ask ask;
    std::span<const std::uint8_t> salt;
    Terms terms{};
    std::int32_t priority = 0;
    std::uint64_t now_us = 0;
};

struct TierStats {
    std::int32_t blocks_total = 0, blocks_free = 0, blocks_held = 0, blocks_in_flight = 0, blocks_quarantined = 0;
    std::int64_t evictions = 0;
};

struct Stats {
    std::int32_t waiting, prefilling, decoding;
    std::int32_t blocks_total, blocks_free, blocks_leased, blocks_frozen, blocks_in_flight, blocks_evictable;
    std::int32_t slots_free, steps_in_flight;
    std::int32_t blocks_quarantined;
    TierStats host, disk;
    std::int32_t transfers;
    TierCounters moved;
    std::int64_t evictions;
    std::int32_t at_door, sessions_admitted;
    std::int64_t blocks_charged, blocks_budget;  // to admitted sessions; 0 without session admission
    Counters counters;
};

class Scheduler {
 public:
    // `options` must have no fault().
    explicit Scheduler(const Options& options);
    Scheduler(const Scheduler&) = delete;
    Scheduler& operator=(const Scheduler&) = delete;

    SubmitStatus submit(const Submission& submission);
    // End a request at any moment; false where it has ended already or never was.
    bool cancel(RequestId id);
    // Fill the next plan; false where nothing can run now, or as many steps are in flight as may be.
    bool plan(PlanBuffer& plan, std::uint64_t now_us);
    // Take the result of the oldest step in flight: one token per sampled row, negative where the row failed.
    // `outcome` gets a row per token and per request that ended since the last commit or drain.
    // `now_us` is when the result was there, `step_us` what the step took on the device; 0 where unknown.
    CommitStatus commit(StepId step, std::span<const std::int32_t> tokens, OutcomeBuffer& outcome,
                        std::uint64_t now_us = 0, std::uint64_t step_us = 0);
    // A turn of `session` has ended and its next is not here yet; `gap_key` names what it waits for, 0 nothing.
    void idle_session(SessionId session, IdleClass idle, std::uint64_t gap_key, std::uint64_t now_us);
    // No further request of `session` will come; what is admitted for it is free again.
    void close_session(SessionId session, std::uint64_t now_us);
    // What became of copies that plans asked for (CopyResult each); in any order, at any time, once or more.
    void transferred(std::span<const std::uint64_t> copies, std::span<const std::uint8_t> results,
                     std::uint64_t now_us);
    // Blocks of the device whose memory does not hold what was stored there: requests that run on them start
    // over from what is sound, and nobody reads them again. Before the commit of the step that found it, no token of
    // that step that depends on them is emitted.
    void corrupt(std::span<const std::int32_t> blocks, std::uint64_t now_us);
    // Blocks that a lower tier has held since before this scheduler; how many could be placed.
    std::int32_t adopt(TierKind tier, std::span<const std::int32_t> blocks, std::span<const Hash128> hashes,
                       std::span<const Hash128> parents);
    // The requests that ended without a step (cancelled) since the last commit or drain.
    void drain(OutcomeBuffer& outcome);
    // Drop every cached block that no request uses; returns how many.
    std::int32_t flush_prefix();

    [[nodiscard]] const Options& options() const { return options_; }
    // After how long a request that was refused for want of room, or that would be, may be admitted.
    [[nodiscard]] std::uint64_t retry_after_us() const;
    [[nodiscard]] const Session* session(SessionId id) const { return holdings_.sessions.find(id); }
    [[nodiscard]] const std::vector<Tenant>& tenants() const { return holdings_.share.tenants(); }
    [[nodiscard]] const CostModel& cost() const { return holdings_.cost; }
    [[nodiscard]] bool idle() const;
    [[nodiscard]] Stats stats() const;
    // Prompt and output of a live request; empty for any other.
    [[nodiscard]] std::span<const std::int32_t> tokens(RequestId id) const;
    [[nodiscard]] std::vector<std::uint8_t> log() const { return holdings_.log.snapshot(); }
    [[nodiscard]] EventLog::Part take_journal() { return holdings_.log.take(); }
    // Assert I1-I10; throws InvariantError.
    void check() const;
    // Equal digests: equal decisions from here on (step and request numbers aside).
    [[nodiscard]] std::uint64_t digest() const;

 private:
    struct Ended {
        RequestId id;
        FinishReason reason;
    };

    // The session's leaf rests in another class.
    void classify(const std::optional<Retention::Leaf>& leaf);
    [[nodiscard]] SubmitStatus judge(const Submission& submission) const;
    // Does its session have to be admitted first?
    [[nodiscard]] bool is_stranger(const Terms& terms) const;
    void log_terms(const Submission& submission);
    // Admit the sessions that fit, the first at the door first.
    void open_door();
    [[nodiscard]] SessionIndex first_at_door() const;
    // Do turns of admitted sessions wait so long that more sessions would only make it longer?
    [[nodiscard]] bool turns_wait_long() const;
    // Was the device idle often enough of late, where that was measured, to compute something twice?
    [[nodiscard]] bool has_spare_time() const;
    void note_busy(std::uint64_t step_us);
    void move_admitted();
    // End the requests that have not begun by their deadline.
    void expire();
    template <class State>
    void expire_in(Roster<State>& roster);
    void account_row(const InFlight::Row& row, std::int64_t share_ns, bool alive);
    // What a step took, for the model and for the accounts.
    void learn(const InFlight& flight, std::uint64_t step_us);
    void commit_row(const InFlight::Row& row, std::int32_t token, std::int64_t share_ns, OutcomeBuffer& outcome);
    template <class State>
    void commit_computed(State& request, std::int32_t tokens);
    void commit_sample(Seat seat, std::int32_t token, OutcomeBuffer& outcome);
    // To the journal: a prompt, the rows of a plan, what a result was.
    void note_prompt(const Submission& submission, const Ledger& ledger);
    void note_rows(const PlanBuffer& plan);
    void note_token(Ledger& ledger);
    void note_said(Said said);
    void freeze_full(Ledger& ledger, Residence& residence);
    // What is left to do for the session of a request that ends.
    struct Parting {
        SessionIndex session;
        std::int32_t blocks;
        bool final;
    };
    [[nodiscard]] Parting parting(const Ledger& ledger) const;
    void finish(Finished&& finished, const Parting& parting);
    // As many of ended_ as there is room for; the rest with the next outcome.
    void report_ended(OutcomeBuffer& outcome);

    Options options_;
    Holdings holdings_;
    Planner planner_;
    std::uint64_t steps_ = 0;
    std::int64_t sequence_ = 0;
    std::uint64_t aging_looked_us_ = 0;
    double busy_share_ = -1;  // of the device, of late; negative: not known
    std::uint64_t busy_us_ = 0;
    std::uint64_t busy_since_us_ = 0;
    double finish_gap_us_ = 1e6;  // between two ends of requests
    std::uint64_t finished_us_ = 0;
    std::vector<RowWork> works_;           // scratch of a commit
    std::vector<std::int64_t> shares_ns_;  // scratch of a commit
    std::vector<Ended> ended_;
    std::vector<std::uint64_t> noted_;       // scratch: a record of the journal
    std::vector<std::uint64_t> rows_noted_;  // of the last plan
    std::uint64_t samples_committed_ = 0;    // of the step being committed
};

}  // namespace tokenspeed
