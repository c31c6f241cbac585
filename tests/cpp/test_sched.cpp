// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "sched/accounts.h"
#include "sched/cost_model.h"
#include "sched/event_log.h"
#include "sched/policy.h"
#include "test.h"
#include "world.h"

using namespace tokenspeed;
using world::Request;
using world::World;

namespace {

Options options_of(bool overlap = false) {
    return {.blocks_total = 32,
            .block_tokens = 4,
            .slots_max = 4,
            .tokens_per_step_max = 16,
            .rows_per_step_max = 4,
            .prefill_tokens_max = 12,
            .waiting_max = 8,
            .context_tokens_max = 64,
            .prefix_cache = true,
            .overlap = overlap,
            .hash_key = {3, 4},
            .log_bytes = 4096,
            .seed = 11};
}

Request request(std::int32_t prompt_tokens, std::int32_t tokens_max, std::string salt = "",
                std::int32_t priority = 0) {
    Request made;
    made.prompt.resize(static_cast<std::size_t>(prompt_tokens));
    std::iota(made.prompt.begin(), made.prompt.end(), 0);
    made.ask.tokens_max = tokens_max;
    made.salt = std::move(salt);
    made.priority = priority;
    return made;
}

// A world whose requests were submitted in order.
struct Started : World {
    Started(const Options& options, std::vector<Request> requests) : World(options, std::move(requests)) {
        for (std::size_t i = 0; i < World::requests(); ++i) {
            EXPECT(submit(i) == SubmitStatus::accepted);
        }
    }
    bool step() {
        if (!plan()) {
            return false;
        }
        commit();
        return true;
    }
};

template <class T>
std::vector<T> values(const Bounded<T>& list) {
    return {list.values().begin(), list.values().end()};
}

}  // namespace

TEST(a_submission_is_refused_with_a_value) {
    Options options = options_of();
    options.waiting_max = 1;
    options.blocks_total = 8;
    World world(options,
                {request(3, 2), request(60, 5), request(30, 5), request(0, 5), request(3, 0), request(3, 2)});
    EXPECT(world.submit(0) == SubmitStatus::accepted);
    EXPECT(world.submit(0) == SubmitStatus::duplicate);
    EXPECT(world.submit(1) == SubmitStatus::too_long);
    EXPECT(world.submit(2) == SubmitStatus::exceeds_pool);
    EXPECT(world.submit(3) == SubmitStatus::empty);
    EXPECT(world.submit(4) == SubmitStatus::empty);
    EXPECT(world.submit(5) == SubmitStatus::queue_full);
    world.run_out();
}

TEST(the_largest_request_that_fits_the_pool_is_served) {
    Options options = options_of();
    options.blocks_total = 8;
    Started world(options, {request(28, 5)});  // 32 positions: its last token is never computed
    world.run_out();
    EXPECT(world.emitted(0).size() == 5);
}

TEST(a_long_prompt_runs_in_chunks_within_the_budget) {
    Started world(options_of(), {request(30, 2)});
    for (const std::int32_t length : {12, 12, 6, 1}) {
        EXPECT(world.step() && values(world.plan_last().lengths) == std::vector{length});
    }
    EXPECT(!world.step() && world.emitted(0).size() == 2);
}

TEST(decode_rows_come_first_and_prompts_share_the_step) {
    Started world(options_of(), {request(5, 8), request(30, 2)});
    EXPECT(world.step() && world.plan_last().decode_rows == 0);
    EXPECT(world.step());
    EXPECT(world.plan_last().decode_rows == 1);
    EXPECT(values(world.plan_last().lengths) == (std::vector{1, 12}));
    world.run_out();
}

TEST(requests_run_in_order_of_arrival) {
    Options options = options_of();
    options.slots_max = 1;
    Started world(options, {request(5, 1), request(6, 1), request(7, 1)});
    for (const std::uint64_t id : {0U, 1U, 2U}) {
        EXPECT(world.step() && values(world.plan_last().request_ids) == std::vector{id});
    }
}

TEST(a_priority_is_worth_a_bounded_number_of_places) {
    const std::int64_t places = policy::kPlacesPerPriority;
    EXPECT(policy::rank(1, 0) < policy::rank(2, 0));
    EXPECT(policy::rank(places, 1) < policy::rank(1, 0));
    EXPECT(policy::rank(1, 0) < policy::rank(places + 1, 1));
    EXPECT(policy::rank(5, 1000) == policy::rank(5, policy::kPriorityMost));
    Options options = options_of();
    options.slots_max = 1;
    Started world(options, {request(5, 1), request(6, 1), request(7, 1, "", 1)});
    EXPECT(world.step() && values(world.plan_last().request_ids) == std::vector<std::uint64_t>{2});
}

TEST(a_prefix_hit_covers_whole_blocks_and_never_the_last_token) {
    EXPECT(policy::hit_blocks_max(8, 4) == 1 && policy::hit_blocks_max(9, 4) == 2);
    Options options = options_of();
    options.slots_max = 1;
    Started world(options, {request(8, 1), request(8, 1), request(8, 1, "other tenant")});
    EXPECT(world.step() && values(world.plan_last().cached_tokens) == std::vector{0});
    EXPECT(world.step() && values(world.plan_last().cached_tokens) == std::vector{4});
    EXPECT(values(world.plan_last().starts) == std::vector{4} &&
           values(world.plan_last().lengths) == std::vector{4});
    EXPECT(world.step() && values(world.plan_last().cached_tokens) == std::vector{0});
}

TEST(the_next_turn_of_a_session_hits_prompt_and_answer) {
    World world(options_of(), {request(10, 7)});
    (void)world.submit(0);
    while (world.plan()) {
        world.commit();
    }
    EXPECT(world.scheduler.stats().blocks_frozen == 4);  // 16 positions of 10 + 7 - 1
    std::vector<std::int32_t> turn = request(10, 1).prompt;
    turn.insert(turn.end(), world.emitted(0).begin(), world.emitted(0).end());
    const auto status =
        world.scheduler.submit({.id = RequestId{9}, .prompt = turn, .ask = {1, 0, {}}, .salt = {}});
    world::Owned<PlanBuffer> plan(world.scheduler.options());
    EXPECT(status == SubmitStatus::accepted && world.scheduler.plan(plan.buffer, 0));
    EXPECT(values(plan.buffer.cached_tokens) == std::vector{16});
}

TEST(rows_that_begin_with_the_same_blocks_are_grouped) {
    Options options = options_of();
    options.blocks_total = 200;
    options.context_tokens_max = 200;
    options.slots_max = options.rows_per_step_max = 6;
    options.prefill_tokens_max = options.tokens_per_step_max = 64;
    // Blocks of 4. Two families of a common system prompt of 8 blocks, of which one goes on together for 12
    // more; one request of its own.
    const auto prompt = [](std::int32_t common, std::int32_t family, std::int32_t own) {
        std::vector<std::int32_t> tokens(static_cast<std::size_t>(common * 4), 1);
        tokens.insert(tokens.end(), 48, family);
        tokens.insert(tokens.end(), 3, own);
        return world::Request{tokens, {20, 0, {}}, "", 0};
    };
    World world(options, {prompt(8, 2, 0), prompt(8, 3, 0), prompt(0, 4, 0), prompt(8, 2, 1), prompt(8, 2, 2),
                          prompt(8, 3, 1)});
    const auto step = [&world] {
        const bool planned = world.plan();
        if (planned) {
            world.commit();
        }
        return planned;
    };
    const auto run = [&](std::size_t i) {  // until its prompt is computed and it decodes with the others
        (void)world.submit(i);
        EXPECT(step());
        while (world.plan_last().decode_rows != world.plan_last().rows()) {
            EXPECT(step());
        }
    };
    run(0);
    run(1);
    run(2);
    EXPECT(values(world.plan_last().group_rows) == (std::vector{0, 1}));
    EXPECT(values(world.plan_last().group_blocks) == std::vector{8});
    run(3);
    run(4);
    run(5);
    EXPECT(values(world.plan_last().group_rows) == (std::vector{0, 3, 4, 1, 5}));
    // All five share 8 blocks, which would spare 32 reads; the families spare 40 and 20.
    EXPECT(values(world.plan_last().group_sizes) == (std::vector{3, 2}));
    EXPECT(values(world.plan_last().group_blocks) == (std::vector{20, 20}));
    EXPECT(world.cancel(3));
    EXPECT(step() && step());
    EXPECT(values(world.plan_last().group_sizes) == (std::vector{2, 2}));
    while (step()) {
    }
}

TEST(equal_prompts_that_run_together_end_on_the_same_blocks) {
    Options options = options_of();
    options.prefill_tokens_max = 16;
    Started world(options, {request(8, 4), request(8, 4)});
    EXPECT(world.step() && world.plan_last().rows() == 2);
    const Stats stats = world.scheduler.stats();
    EXPECT(stats.counters.blocks_deduplicated == 2 && stats.blocks_frozen == 2 && stats.blocks_leased == 0);
    world.scheduler.check();
    world.run_out();
}

TEST(a_retracted_request_continues_with_the_same_tokens) {
    Options options = options_of();
    options.blocks_total = 6;
    Started world(options, {request(6, 12), request(6, 12, "b"), request(6, 6, "c")});
    world.run_out();
    EXPECT(world.scheduler.stats().counters.retractions > 0);
    EXPECT(world.emitted(0).size() == 12 && world.emitted(1).size() == 12);
}

TEST(a_blocked_request_is_looked_at_again_only_when_capacity_comes_free) {
    Options options = options_of();
    options.blocks_total = 12;
    Started world(options, {request(20, 20), request(40, 2, "b")});
    for (int i = 0; i < 5; ++i) {
        EXPECT(world.step() && world.scheduler.stats().waiting == 1);
    }
    EXPECT(world.cancel(0));
    EXPECT(world.step() && world.scheduler.stats().waiting == 0);
    world.run_out();
}

TEST(with_overlap_a_row_feeds_the_token_that_is_in_flight) {
    Started world(options_of(true), {request(5, 4)});
    EXPECT(world.plan() && world.plan());
    EXPECT(values(world.plan_last().tokens) == std::vector{-1});
    EXPECT(!world.plan());  // two steps in flight
    world.commit();
    EXPECT(world.plan());
    world.commit();
    world.commit();
    EXPECT(world.emitted(0).size() == 3);
    world.run_out();
    EXPECT(world.scheduler.stats().counters.results_late == 0 && world.emitted(0).size() == 4);
}

TEST(with_overlap_the_extra_row_of_a_stopped_request_is_discarded) {
    Request stops = request(5, 8);
    stops.ask.stop_ids = {0, 1, 2, 3, 4};
    Started world(options_of(true), {stops});
    EXPECT(world.plan() && world.plan());
    world.commit();
    EXPECT(world.emitted(0).size() == 1 && world.scheduler.stats().blocks_in_flight > 0);
    EXPECT(!world.scheduler.idle());
    world.commit();
    EXPECT(world.emitted(0).size() == 1 && world.scheduler.stats().counters.results_late == 1);
    world.run_out();
}

TEST(a_stop_id_counts_after_the_least_number_of_tokens) {
    Request stops = request(5, 8);
    stops.ask.stop_ids = {0, 1, 2, 3, 4};
    stops.ask.tokens_min = 3;
    Started world(options_of(), {stops});
    world.run_out();
    EXPECT(world.emitted(0).size() == 3);
}

TEST(more_requests_than_rows_take_turns) {
    Options options = options_of();
    options.rows_per_step_max = 2;
    options.slots_max = 5;
    Started world(options, {request(3, 9), request(3, 9, "b"), request(3, 9, "c"), request(3, 9, "d"),
                            request(3, 9, "e")});
    world.run_out();
    EXPECT(world.emitted(4).size() == 9);
}

TEST(a_cancel_is_answered_once_and_reported_once) {
    World world(options_of(), {request(5, 4), request(5, 4)});
    EXPECT(!world.cancel(0));
    (void)world.submit(0);
    EXPECT(world.cancel(0) && !world.cancel(0));
    world.drain();
    EXPECT(world.state(0) == World::State::finished && world.scheduler.idle());
    (void)world.submit(1);
    EXPECT(world.plan() && world.cancel(1));
    world.commit();
    EXPECT(world.state(1) == World::State::finished);
    world.run_out();
}

TEST(a_result_of_before_an_id_was_used_again_is_discarded) {
    Scheduler scheduler(options_of(true));
    world::Owned<PlanBuffer> first(scheduler.options());
    world::Owned<PlanBuffer> second(scheduler.options());
    world::Owned<OutcomeBuffer> outcome(scheduler.options());
    const std::vector<std::int32_t> prompt{1, 2, 3, 4, 5};
    const Submission submission{.id = RequestId{7}, .prompt = prompt, .ask = {2, 0, {}}, .salt = {}};
    EXPECT(scheduler.submit(submission) == SubmitStatus::accepted && scheduler.plan(first.buffer, 0));
    EXPECT(scheduler.cancel(RequestId{7}) && scheduler.submit(submission) == SubmitStatus::accepted);
    EXPECT(scheduler.plan(second.buffer, 0));
    EXPECT(second.buffer.slots.values()[0] != first.buffer.slots.values()[0]);
    EXPECT(scheduler.commit(StepId{1}, std::vector{50}, outcome.buffer) == CommitStatus::committed);
    EXPECT(values(outcome.buffer.finishes) == std::vector<std::uint8_t>{3});  // the cancel, and no token
    EXPECT(scheduler.tokens(RequestId{7}).size() == 5 && scheduler.stats().counters.results_late == 1);
    EXPECT(scheduler.commit(StepId{2}, std::vector{60}, outcome.buffer) == CommitStatus::committed);
    EXPECT(values(outcome.buffer.tokens) == std::vector{60});
    scheduler.check();
}

TEST(a_result_of_the_wrong_size_changes_nothing) {
    Started world(options_of(), {request(5, 4)});
    EXPECT(world.plan());
    world::Owned<OutcomeBuffer> outcome(world.scheduler.options());
    const std::vector<std::int32_t> two{1, 2};
    EXPECT(world.scheduler.commit(StepId{1}, two, outcome.buffer) == CommitStatus::wrong_size);
    world.commit();
    world.run_out();
}

TEST(equal_events_make_equal_decisions_and_logs) {
    const std::vector<Request> requests{request(9, 5), request(9, 5), request(20, 3, "b")};
    Started one(options_of(true), requests);
    Started two(options_of(true), requests);
    one.run_out();
    two.run_out();
    EXPECT(one.scheduler.log() == two.scheduler.log() && one.scheduler.digest() == two.scheduler.digest());
}

TEST(the_log_keeps_the_last_events_whole) {
    EventLog log(64, 5, false);
    for (std::uint64_t i = 0; i < 100; ++i) {
        log.add(EventKind::late, {1000 + i});
    }
    const std::vector<std::uint8_t> bytes = log.snapshot();
    EXPECT(bytes.size() == 20 + 64 && bytes[4] == 5 && bytes[12] == 84);
    EXPECT(bytes[20] == static_cast<std::uint8_t>(EventKind::late) && bytes[21] == 2);
    EXPECT((bytes[22] & 0x7fU) + (static_cast<unsigned>(bytes[23]) << 7U) == 1084);
}

TEST(a_step_costs_at_most_200_bytes_of_log) {
    Options options = options_of();
    options.slots_max = options.rows_per_step_max = options.tokens_per_step_max = options.prefill_tokens_max =
        256;
    options.blocks_total = 4096;
    options.waiting_max = 256;
    options.log_bytes = 1 << 20;
    std::vector<Request> requests;
    for (int i = 0; i < 256; ++i) {
        requests.push_back(request(1, 50, std::to_string(i)));
    }
    Started world(options, std::move(requests));
    EXPECT(world.step());
    const std::size_t before = world.scheduler.log().size();
    EXPECT(world.step() && world.plan_last().decode_rows == 256);
    EXPECT(world.scheduler.log().size() - before <= 200);
}

TEST(options_say_what_is_wrong) {
    EXPECT(options_of().fault().empty());
    Options options = options_of();
    options.tokens_per_step_max = 3;
    EXPECT(options.fault() == "tokens_per_step_max is 3; the least is 4");
}

TEST(the_cost_model_learns_prices_and_survives_late_steps) {
    const StepCost truth{.base_us = 5000, .row_us = 200, .context_us = 0.05, .token_us = 40, .pair_us = 0.001};
    CostModel model(options_of());
    std::uint64_t dice = 1;
    const auto draw = [&dice](std::int64_t most) {
        dice = dice * 6364136223846793005U + 1442695040888963407U;
        return static_cast<std::int64_t>((dice >> 33U) % static_cast<std::uint64_t>(most));
    };
    const auto work_of = [&](bool prefill) {
        Work work;
        for (std::int64_t rows = 1 + draw(16); rows > 0; --rows) {
            work.add_decode(1000 + draw(90'000));
        }
        if (prefill) {
            work.add_chunk(draw(60'000), 1 + draw(4000));
        }
        return work;
    };
    for (int i = 0; i < 4000; ++i) {
        const Work work = work_of(i % 3 == 0);
        const double step_us = truth(work) * (i % 100 == 7 ? 3 : 1);
        model.learn(work, step_us, step_us);
    }
    double worst = 0;
    for (int i = 0; i < 200; ++i) {
        const Work work = work_of(i % 2 == 0);
        worst = std::max(worst, std::abs(model.predict(work) / truth(work) - 1));
        EXPECT(model.upper(work) >= model.predict(work));
    }
    EXPECT(worst < 0.05);
}

TEST(exact_prices_give_the_longest_chunk_that_fits) {
    Options options = options_of();
    options.cost = {.base_us = 1000, .row_us = 50, .context_us = 0.01, .token_us = 10, .pair_us = 0.0005};
    options.cost_exact = true;
    const CostModel model(options);
    Work work;
    work.add_decode(10'000);
    for (const double budget_us : {1200.0, 2500.0, 40'000.0, 900'000.0}) {
        const std::int32_t length = model.tokens_within(work, 5000, budget_us);
        Work with = work;
        with.add_chunk(5000, length);
        Work longer = work;
        longer.add_chunk(5000, length + 1);
        EXPECT((length == 0 || model.upper(with) <= budget_us) && model.upper(longer) > budget_us);
    }
}

TEST(a_pace_keeps_every_window_however_far_ahead_a_request_ran) {
    for (const std::int32_t floor_mtps : {20'000, 40'000, 70'000}) {
        Pace pace = Pace::of(floor_mtps);
        const std::uint64_t promised_ns = 1'000'000'000'000U / static_cast<std::uint64_t>(floor_mtps);
        const std::uint64_t window = std::min<std::uint64_t>(64, 2'000'000'000U / promised_ns);
        std::vector<std::uint64_t> came_ns;
        std::uint64_t now_ns = 1'000'000;
        for (int token = 0; token < 600; ++token) {
            pace.advance(now_ns);
            came_ns.push_back(now_ns);
            // a fast stretch, then as late as may be, over and over
            now_ns = token / 50 % 2 == 0 ? now_ns + promised_ns / 10 : std::max(now_ns + 1, pace.due_after(0, 0));
        }
        for (std::size_t i = 0; i + window < came_ns.size(); ++i) {
            EXPECT(came_ns[i + window] - came_ns[i] <= window * promised_ns);
        }
    }
}

TEST(time_is_divided_among_rows_to_the_last_nanosecond) {
    const std::vector<RowWork> rows{{1000, 1, true}, {90'000, 1, true}, {64, 500, false}};
    std::vector<std::int64_t> shares(rows.size());
    divide(1'000'003, {.base_us = 10, .row_us = 1, .context_us = 0.01, .token_us = 1, .pair_us = 0.001}, rows, shares);
    EXPECT(std::accumulate(shares.begin(), shares.end(), std::int64_t{0}) == 1'000'003);
    EXPECT(shares[1] > shares[0] && std::ranges::all_of(shares, [](std::int64_t each) { return each > 0; }));
}

TEST(a_stranger_waits_at_the_door_and_a_turn_does_not) {
    Options options = options_of();
    options.session_admission = true;
    options.session_tokens = 100;  // 25 of 32 blocks
    Request first = request(9, 2);
    first.terms.session = SessionId{1};
    Request stranger = request(9, 2, "b");
    stranger.terms.session = SessionId{2};
    Request turn = request(13, 2);
    turn.terms.session = SessionId{1};
    turn.terms.final = true;
    Started world(options, {first, stranger, turn});
    EXPECT(world.scheduler.stats().at_door == 1 && world.scheduler.stats().waiting == 2);
    while (world.emitted(2).size() < 2) {
        EXPECT(world.step());
    }
    EXPECT(world.emitted(1).empty());
    world.run_out();  // the last turn was final: the stranger enters
    EXPECT(world.emitted(1).size() == 2);
    const Session* const session = world.scheduler.session(SessionId{1});
    EXPECT(session != nullptr && session->account.requests == 2 && session->account.tokens_output == 4);
}

TEST(a_request_that_has_not_begun_by_its_deadline_ends_before_work) {
    Options options = options_of();
    Scheduler scheduler(options);
    const std::vector<std::int32_t> prompt{1, 2, 3};
    Submission submission{.id = RequestId{1}, .prompt = prompt, .ask = {2, 0, {}}, .salt = {}};
    submission.terms.deadline_us = 500;
    submission.now_us = 100;
    EXPECT(scheduler.submit(submission) == SubmitStatus::accepted);
    world::Owned<PlanBuffer> plan(options);
    world::Owned<OutcomeBuffer> outcome(options);
    EXPECT(!scheduler.plan(plan.buffer, 501));
    scheduler.drain(outcome.buffer);
    EXPECT(values(outcome.buffer.finishes) ==
           std::vector<std::uint8_t>{static_cast<std::uint8_t>(FinishReason::deadline)});
    scheduler.check();
}
