// SPDX-License-Identifier: MIT
// Every reachable state of small worlds (up to 3 requests, 3 blocks, 6 steps on a path), in every order of
// events: submit, cancel, plan, result, failed result, late and duplicated results. After each event: I1-I10,
// and the arithmetic executor's own judgement. From each state: everything must come to an end with every
// block given back. Then large worlds at random.
//
// Usage: control_worlds [states_max per world] [random transitions] [planted bug]; exit status 1 on a violation
#include <cstdlib>
#include <string>
#include <unordered_set>

#include "base/plant.h"
#include "base/random.h"
#include "world.h"

namespace {

using namespace tokenspeed;
using world::Request;
using world::World;

// What an event is depends on the state it meets: an index into the menu of that state.
enum class Kind : std::uint8_t {
    submit,
    cancel,
    plan,
    commit,
    commit_failed,
    commit_late,
    drain,
    copied,
    copy_failed,
    copy_corrupt,
    corrupt
};
struct Event {
    Kind kind;
    std::uint8_t request;
};

const char* name(Kind kind) {
    constexpr const char* kNames[] = {"submit",        "cancel",      "plan", "commit",
                                      "commit_failed", "commit_late", "drain", "copied", "copy_failed",
                                      "copy_corrupt",  "corrupt"};
    return kNames[static_cast<std::size_t>(kind)];
}

void apply(World& world, Event event) {
    switch (event.kind) {
        case Kind::submit:
            world::require(world.submit(event.request) == SubmitStatus::accepted,
                           "a small request is refused");
            break;
        case Kind::cancel:
            (void)world.cancel(event.request);
            break;
        case Kind::plan:
            (void)world.plan();
            break;
        case Kind::commit:
            world.commit();
            break;
        case Kind::commit_failed:
            world.commit(true);
            break;
        case Kind::commit_late:
            world.commit_late();
            break;
        case Kind::drain:
            world.drain();
            break;
        case Kind::copied:
            world.land(0, CopyResult::done);
            break;
        case Kind::copy_failed:
            world.land(0, CopyResult::failed);
            break;
        case Kind::copy_corrupt:
            world.land(world.copies() - 1, CopyResult::corrupt);
            break;
        case Kind::corrupt:
            world.find_corrupt(event.request);
            break;
    }
}

std::vector<Event> menu(const World& world, std::int32_t steps_max) {
    std::vector<Event> events;
    for (std::uint8_t i = 0; i < world.requests(); ++i) {
        if (world.state(i) == World::State::unborn) {
            events.push_back({Kind::submit, i});
        } else {
            events.push_back({Kind::cancel, i});  // of one that has ended, too
        }
    }
    const Stats stats = world.scheduler.stats();
    if (stats.counters.steps < steps_max &&
        stats.steps_in_flight < world.scheduler.options().steps_in_flight_max()) {
        events.push_back({Kind::plan, 0});
    }
    if (world.flights() > 0) {
        events.push_back({Kind::commit, 0});
        events.push_back({Kind::commit_failed, 0});
    }
    events.push_back({Kind::commit_late, 0});
    events.push_back({Kind::drain, 0});
    if (world.copies() > 0) {
        events.push_back({Kind::copied, 0});
        events.push_back({Kind::copy_failed, 0});
        events.push_back({Kind::copy_corrupt, 0});
    }
    if (world.scheduler.options().tiers && stats.blocks_frozen > 0 && stats.blocks_quarantined == 0) {
        events.push_back({Kind::corrupt, 0});
    }
    return events;
}

struct Small {
    const char* name;
    Options options;
    std::vector<Request> requests;
};

// The states of the world, as the scheduler and the front see it.
std::uint64_t digest(const World& world) {
    std::uint64_t value = world.scheduler.digest();
    for (std::size_t i = 0; i < world.requests(); ++i) {
        const auto state = static_cast<std::uint8_t>(world.state(i));
        value = digest_of(digest_of(value, std::span<const std::uint8_t>(&state, 1)),
                          std::span<const std::int32_t>(world.emitted(i)));
    }
    return value;
}

void report(const Small& small, const std::vector<Event>& path, const std::exception& error) {
    std::printf("world %s: %s\n  after:", small.name, error.what());
    for (const Event event : path) {
        std::printf(" %s(%d)", name(event.kind), event.request);
    }
    std::printf("\n");
}

// Breadth first, so that every state is met by a shortest path. A state is rebuilt by replaying its path.
bool explore(const Small& small, std::size_t states_max, std::int32_t steps_max) {
    std::unordered_set<std::uint64_t> seen;
    std::deque<std::vector<Event>> frontier{{}};
    std::size_t transitions = 0;
    const auto rebuild = [&](const std::vector<Event>& path) {
        auto world = std::make_unique<World>(small.options, small.requests);
        for (const Event event : path) {
            apply(*world, event);
        }
        return world;
    };
    while (!frontier.empty() && seen.size() < states_max) {
        const std::vector<Event> path = std::move(frontier.front());
        frontier.pop_front();
        for (const Event event : menu(*rebuild(path), steps_max)) {
            std::vector<Event> longer = path;
            longer.push_back(event);
            ++transitions;
            try {
                const auto world = rebuild(path);
                apply(*world, event);
                world->scheduler.check();
                if (seen.insert(digest(*world)).second) {
                    frontier.push_back(longer);
                    world->run_out();
                }
            } catch (const std::exception& error) {
                report(small, longer, error);
                return false;
            }
        }
    }
    std::printf("world %-28s %8zu states %9zu transitions%s\n", small.name, seen.size(), transitions,
                frontier.empty() ? ", all" : " (bounded)");
    return true;
}

Options small_options(bool overlap, bool prefix_cache) {
    return {.blocks_total = 3,
            .block_tokens = 2,
            .slots_max = 2,
            .tokens_per_step_max = 4,
            .rows_per_step_max = 2,
            .prefill_tokens_max = 3,
            .waiting_max = 3,
            .context_tokens_max = 8,
            .prefix_cache = prefix_cache,
            .overlap = overlap,
            .shared_blocks_min = 1,
            .hash_key = {1, 2},
            .log_bytes = 1024};
}

using Ids = std::vector<std::int32_t>;

Request ask(Ids prompt, std::int32_t tokens_max, std::int32_t tokens_min = 0, Ids stop_ids = {},
            std::string salt = "") {
    Request request;
    request.prompt = std::move(prompt);
    request.ask.tokens_max = tokens_max;
    request.ask.tokens_min = tokens_min;
    request.ask.stop_ids = std::move(stop_ids);
    request.salt = std::move(salt);
    return request;
}

std::vector<Small> small_worlds() {
    const Request a = ask({1, 2, 3}, 2);
    const Request same = ask({1, 2, 3}, 3, 0, {0, 1});
    const Request longer = ask({1, 2, 3, 4}, 2);
    const Request stranger = ask({1, 2, 3}, 2, 0, {}, "other");
    const Request even = ask({1, 2}, 4, 2, {0, 1, 2});
    std::vector<Small> worlds;
    for (const bool overlap : {false, true}) {
        for (const bool prefix : {false, true}) {
            const Options options = small_options(overlap, prefix);
            worlds.push_back({overlap ? (prefix ? "overlap prefix same" : "overlap same")
                                      : (prefix ? "prefix same" : "same"),
                              options,
                              {a, same, longer}});
            worlds.push_back({overlap ? (prefix ? "overlap prefix strangers" : "overlap strangers")
                                      : (prefix ? "prefix strangers" : "strangers"),
                              options,
                              {a, stranger, even}});
        }
    }
    Options narrow = small_options(true, true);
    narrow.rows_per_step_max = 1;
    narrow.slots_max = 3;
    worlds.push_back({"overlap prefix one row", narrow, {a, even, even}});
    Options tiered = small_options(true, true);
    tiered.tiers = true;
    tiered.host_blocks = 2;
    tiered.copies_per_step_max = 1;
    worlds.push_back({"overlap prefix host", tiered, {a, stranger}});
    tiered.disk_blocks = 2;
    worlds.push_back({"overlap prefix host disk", tiered, {a, ask({1, 2, 3}, 1)}});
    // Sessions at the door: two strangers who do not fit together, and a second turn of the first.
    Options door = small_options(true, true);
    door.session_admission = door.fair_share = true;
    door.session_tokens = 4;
    door.door_max = 3;
    Request first = a;
    first.terms.session = SessionId{1};
    Request second = longer;
    second.terms.session = SessionId{2};
    second.terms.tenant = TenantId{7};
    first.terms.final = second.terms.final = true;  // no time passes here: nobody would give way
    Request last = same;
    last.terms.session = SessionId{1};
    last.terms.final = true;
    worlds.push_back({"door", door, {first, second, last}});
    Options unit = small_options(true, true);
    unit.block_tokens = 1;
    unit.blocks_total = 3;
    worlds.push_back({"overlap prefix unit blocks", unit, {ask({1}, 3), ask({1, 2}, 2), ask({1}, 2)}});
    return worlds;
}

// Large worlds: random options, requests that share prefixes, every event at random.
void wander(std::uint64_t seed, std::size_t& transitions) {
    Random random(seed);
    const auto between = [&](std::uint64_t low, std::uint64_t high) {
        return static_cast<std::int32_t>(low + random.below(high - low + 1));
    };
    Options options{.blocks_total = between(4, 24),
                    .block_tokens = between(1, 5),
                    .slots_max = between(1, 6),
                    .rows_per_step_max = between(1, 6),
                    .waiting_max = between(2, 8),
                    .context_tokens_max = 64,
                    .prefix_cache = random.below(4) > 0,
                    .overlap = random.below(2) > 0,
                    .shared_blocks_min = 1,
                    .hash_key = {seed, 7},
                    .log_bytes = 1024,
                    .seed = seed};
    if (random.below(2) > 0) {
        options.tiers = true;
        options.host_blocks = between(0, 20);
        options.disk_blocks = between(0, 30);
        options.copies_per_step_max = between(1, 8);
        options.copy_late_us = random.below(5'000);
        options.retention = random.below(2) > 0;
    }
    options.tokens_per_step_max = options.rows_per_step_max + between(0, 20);
    options.prefill_tokens_max = between(1, 20);
    std::vector<Request> requests;
    for (int i = 0; i < 24; ++i) {
        Request request;
        if (i > 0 && random.below(3) > 0) {
            request = requests[random.below(requests.size())];
            request.prompt.resize(1 + random.below(request.prompt.size()));
        }
        while (request.prompt.empty() || random.below(8) > 0) {
            request.prompt.push_back(static_cast<std::int32_t>(random.below(world::kVocab)));
        }
        request.ask = {between(1, 12), between(0, 3), {}};
        if (random.below(2) > 0) {
            request.ask.stop_ids.push_back(static_cast<std::int32_t>(random.below(world::kVocab)));
        }
        request.salt = random.below(3) == 0 ? "tenant" : "";
        request.priority = between(0, 2) - 1;
        request.terms.session = SessionId{random.below(5)};
        request.terms.retain_us = random.below(4) == 0 ? 1'000 : 0;
        request.terms.final = random.below(8) == 0;
        requests.push_back(std::move(request));
    }
    World world(options, requests);
    world.now_us = 1;
    std::size_t next = 0;
    for (int turn = 0; turn < 400 && (next < requests.size() || !world.scheduler.idle());
         ++turn, ++transitions) {
        const std::uint64_t dice = random.below(100);
        world.now_us += random.below(3'000);
        if (world.copies() > 0 && random.below(3) > 0) {
            const std::uint64_t luck = random.below(20);
            world.land(random.below(world.copies()),
                       luck < 17 ? CopyResult::done : luck < 19 ? CopyResult::failed : CopyResult::corrupt);
        } else if (options.tiers && random.below(60) == 0) {
            world.find_corrupt(static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(options.blocks_total))));
        } else if (random.below(20) == 0) {
            world.report_again();
            world.scheduler.idle_session(SessionId{random.below(5)}, IdleClass{static_cast<std::uint8_t>(random.below(3))},
                                         random.below(4), world.now_us);
        } else if (random.below(60) == 0) {
            world.scheduler.close_session(SessionId{random.below(5)}, world.now_us);
        } else if (dice < 15 && next < requests.size()) {
            next += world.submit(next) == SubmitStatus::queue_full ? 0 : 1;
        } else if (dice < 18 && next > 0) {
            (void)world.cancel(random.below(next));
        } else if (dice < 20) {
            world.commit_late();
        } else if (dice < 21) {
            world.drain();
        } else if (dice < 22) {
            (void)world.scheduler.flush_prefix();
        } else if (dice < 60) {
            (void)world.plan();
        } else if (world.flights() > 0) {
            world.commit(random.below(50) == 0);
        }
        world.scheduler.check();
    }
    world.run_out();
}

}  // namespace

int main(int argc, char** argv) {
    const std::size_t states_max = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20'000;
    const std::size_t transitions_max = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 100'000;
#ifdef TOKENSPEED_PLANTS
    plant_in_effect = static_cast<Plant>(argc > 3 ? std::atoi(argv[3]) : 0);
#endif
    for (const Small& small : small_worlds()) {
        if (!explore(small, states_max, 6)) {
            return 1;
        }
    }
    std::size_t transitions = 0;
    std::uint64_t seed = 1;
    for (; transitions < transitions_max; ++seed) {
        try {
            wander(seed, transitions);
        } catch (const std::exception& error) {
            std::printf("random world, seed %llu: %s\n", static_cast<unsigned long long>(seed), error.what());
            return 1;
        }
    }
    std::printf("random worlds: %llu seeds, %zu transitions\n", static_cast<unsigned long long>(seed - 1),
                transitions);
    return 0;
}
