// SPDX-License-Identifier: MIT
#include <numeric>
#include <vector>

#include "base/random.h"
#include "sched/retention.h"
#include "test.h"
#include "world.h"

using namespace tokenspeed;
using world::Request;
using world::World;

namespace {

constexpr std::uint64_t kSecond = 1'000'000;
constexpr SessionId kAnn{1};
constexpr SessionId kBob{2};

Terms terms_of(SessionId session, std::uint64_t retain_us = 0, bool final = false) {
    Terms terms;
    terms.session = session;
    terms.retain_us = retain_us;
    terms.final = final;
    return terms;
}

// The class that a session's leaf rests in once its turn has ended so.
RestClass rest_after(Retention& retention, SessionId session, IdleClass idle, std::uint64_t gap_key) {
    (void)retention.end(terms_of(session), BlockId{0}, {}, 0);
    return retention.idle(session, idle, gap_key, 0)->rest;
}

Ticks seconds(std::uint64_t count) { return ticks_of(count * kSecond); }

}  // namespace

TEST(bins_cover_all_ages_without_a_gap) {
    for (std::size_t bin = 0; bin < Gaps::kBins; ++bin) {
        EXPECT(Gaps::bin(static_cast<Ticks>(Gaps::start(bin))) == bin);
        EXPECT(Gaps::bin(static_cast<Ticks>(Gaps::start(bin + 1) - 1)) == bin);
    }
    EXPECT(Gaps::start(Gaps::kBins) == std::uint64_t{1} << 32U);
}

TEST(a_tool_is_worth_more_than_a_person_at_first_and_less_when_it_is_late) {
    Retention retention(8);
    const RestClass tool = rest_after(retention, kAnn, IdleClass::tool, 0);
    const RestClass turn = rest_after(retention, kBob, IdleClass::turn, 0);
    EXPECT(retention.worth(tool, 0) > 10 * retention.worth(turn, 0));
    EXPECT(retention.worth(tool, seconds(3600)) < retention.worth(turn, seconds(60)));
    for (const RestClass each : {tool, turn, kRestUnknown}) {
        for (std::uint64_t s = 200; s < 5'000; s *= 16) {
            EXPECT(retention.worth(each, seconds(16 * s)) <= retention.worth(each, seconds(s)));
        }
    }
}

TEST(gaps_are_learned_by_tool) {
    Retention retention(8);
    const RestClass quick = rest_after(retention, kAnn, IdleClass::tool, 77);
    const RestClass slow = rest_after(retention, kBob, IdleClass::tool, 78);
    EXPECT(quick != slow && retention.worth(quick, 0) == retention.worth(slow, 0));
    for (std::uint64_t turn = 0; turn < 64; ++turn) {
        const std::uint64_t now = turn * 1000 * kSecond;
        (void)retention.end(terms_of(kAnn), BlockId{0}, {}, now);
        (void)retention.end(terms_of(kBob), BlockId{1}, {}, now);
        EXPECT(retention.idle(kAnn, IdleClass::tool, 77, now)->rest == quick);
        EXPECT(retention.idle(kBob, IdleClass::tool, 78, now)->rest == slow);
        retention.resume(kAnn, now + kSecond / 10);
        retention.resume(kBob, now + 300 * kSecond);
    }
    EXPECT(retention.worth(quick, 0) > retention.worth(slow, 0));
    EXPECT(retention.worth(slow, seconds(250)) > retention.worth(quick, seconds(250)));
}

TEST(tools_beyond_the_most_share_a_class) {
    Retention retention(64);
    std::vector<RestClass> seen;
    for (std::uint64_t key = 1; key <= 40; ++key) {
        seen.push_back(rest_after(retention, SessionId{key}, IdleClass::tool, key));
        EXPECT(static_cast<std::size_t>(seen.back()) < kRestClasses);
    }
    EXPECT(seen[0] != seen[22] && seen[23] == seen[39]);
    EXPECT(rest_after(retention, SessionId{50}, IdleClass::tool, 3) == seen[2]);
}

TEST(a_wished_stay_is_a_price_and_ends) {
    Retention retention(8);
    (void)retention.end(terms_of(kAnn, 300 * kSecond), BlockId{0}, {}, 0);
    const RestClass kept = retention.idle(kAnn, IdleClass::turn, 0, 0)->rest;
    const RestClass turn = rest_after(retention, kBob, IdleClass::turn, 0);
    const RestClass tool = rest_after(retention, SessionId{3}, IdleClass::tool, 0);
    EXPECT(retention.worth(kept, seconds(200)) > retention.worth(turn, seconds(200)));
    EXPECT(retention.worth(kept, seconds(200)) < retention.worth(tool, 0));  // no pin
    EXPECT(retention.worth(kept, seconds(301)) == retention.worth(kRestUnknown, seconds(301)));
}

TEST(what_is_over_is_worth_nothing) {
    Retention retention(8);
    EXPECT(retention.worth(retention.end(terms_of(kAnn, 0, true), BlockId{0}, {}, 0), 0) == 0);
    (void)retention.end(terms_of(kBob), BlockId{1}, {}, 0);
    EXPECT(retention.worth(retention.close(kBob)->rest, 0) == 0);
    EXPECT(!retention.close(kBob) && !retention.idle(kBob, IdleClass::tool, 0, 0));
    EXPECT(retention.worth(kRestUnknown, ~Ticks{0}) > 0);
}

TEST(sessions_are_forgotten_in_the_order_they_came) {
    Retention retention(2);
    for (std::uint64_t session = 1; session <= 3; ++session) {
        (void)retention.end(terms_of(SessionId{session}), BlockId{0}, {}, 0);
    }
    EXPECT(!retention.idle(SessionId{1}, IdleClass::tool, 0, 0));
    EXPECT(retention.idle(SessionId{2}, IdleClass::tool, 0, 0) && retention.idle(SessionId{3}, IdleClass::tool, 0, 0));
}

TEST(equal_events_make_equal_worths) {
    Retention one(16);
    Retention other(16);
    for (Retention* each : {&one, &other}) {
        Random random(9);
        std::uint64_t now = 0;
        for (int turn = 0; turn < 5000; ++turn) {
            const SessionId session{1 + random.below(24)};
            each->resume(session, now += random.below(90 * kSecond));
            (void)each->end(terms_of(session, random.below(2) * kSecond), BlockId{3}, {}, now);
            (void)each->idle(session, IdleClass{static_cast<std::uint8_t>(random.below(3))}, random.below(40), now);
        }
    }
    EXPECT(one.digest(1) == other.digest(1));
}

namespace {

// Four requests of 16 tokens, of a session each, over a pool that holds three of them.
struct Rested : World {
    static Options options() {
        return {.blocks_total = 15,
                .block_tokens = 4,
                .slots_max = 1,
                .tokens_per_step_max = 32,
                .rows_per_step_max = 2,
                .prefill_tokens_max = 32,
                .waiting_max = 8,
                .context_tokens_max = 32,
                .hash_key = {3, 4},
                .retention = true};
    }
    static std::vector<Request> requests_of() {
        std::vector<Request> made;
        for (std::int32_t session = 1; session <= 4; ++session) {
            Request request;
            request.prompt.resize(16);
            std::iota(request.prompt.begin(), request.prompt.end(), session);
            request.prompt.insert(request.prompt.begin(), session % 5);
            request.ask.tokens_max = 1;
            request.terms = terms_of(SessionId{static_cast<std::uint64_t>(session)});
            made.push_back(request);
            made.push_back(request);  // its next turn
        }
        return made;
    }
    Rested() : World(options(), requests_of()) {}

    void serve(std::size_t i) {
        EXPECT(submit(i) == SubmitStatus::accepted);
        EXPECT(plan());
        cached = plan_last().cached_tokens.values()[0];
        commit();
        scheduler.check();
        now_us += kSecond;
    }
    std::int32_t cached = 0;
};

}  // namespace

TEST(a_closed_session_gives_way_to_those_that_come_back) {
    Rested world;
    world.serve(0);
    world.serve(2);
    world.serve(4);
    world.scheduler.close_session(SessionId{3}, world.now_us);
    world.serve(6);  // takes the blocks of the third, though the first is older
    world.serve(1);
    EXPECT(world.cached == 16);
    world.run_out();
}

TEST(a_session_at_its_tool_outstays_one_whose_turn_ended) {
    Rested world;
    world.serve(0);
    world.scheduler.idle_session(kAnn, IdleClass::tool, 5, world.now_us);
    world.serve(2);
    world.scheduler.idle_session(kBob, IdleClass::turn, 0, world.now_us);
    world.serve(4);
    world.scheduler.idle_session(SessionId{3}, IdleClass::tool, 5, world.now_us);
    world.serve(6);  // takes the blocks of the second
    world.serve(1);
    EXPECT(world.cached == 16);
    world.serve(5);
    EXPECT(world.cached == 16);
    world.run_out();
}
