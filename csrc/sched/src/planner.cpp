// SPDX-License-Identifier: MIT
#include "sched/planner.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/plant.h"
#include "request/transitions.h"
#include "sched/policy.h"

namespace tokenspeed {
namespace {

constexpr std::uint64_t kNeverNs = ~0ULL;

}  // namespace

Planner::Planner(const Options& options, Holdings& holdings) : options_(options), holdings_(holdings) {
    seats_.reserve(static_cast<std::size_t>(options.slots_max));
}

bool Planner::plan(PlanBuffer& plan, StepId step, std::uint64_t now_us) {
    plan.clear();
    plan.step = step;
    prefill_tokens_ = 0;
    start_us_ = options_.floor ? holdings_.device_free_us() : 0;
    due_least_ns_ = kNeverNs;
    starving_ = false;
    for (const Holdings::PendingRedirect& each : holdings_.redirects) {
        plan.add_delta(each.slot, each.index, each.block);
    }
    name_frozen(plan);
    plan_decodes(plan);
    plan.decode_rows = plan.rows();
    plan_prefills(plan);
    plan_admissions(plan, now_us);
    holdings_.tiers.plan(plan);
    if (plan.rows() == 0 && plan.copy_ids.size() == 0) {
        return false;
    }
    plans_starved_ = starving_ && prefill_tokens_ == 0 ? plans_starved_ + 1 : 0;
    if (starving_) {
        holdings_.log.add(EventKind::decision, {static_cast<std::uint64_t>(Reason::least_slack), step.value,
                                                static_cast<std::uint64_t>(prefill_tokens_)});
    }
    holdings_.sharing.mark(plan);
    holdings_.frozen.erase(holdings_.frozen.begin(),
                           holdings_.frozen.begin() + static_cast<std::ptrdiff_t>(frozen_named_));
    holdings_.redirects.clear();  // sent; a plan without rows leaves them for the next
    plan.samples = holdings_.flights.next().samples();
    holdings_.flights.launch(step, plan.work, now_us);
    return true;
}

void Planner::name_frozen(PlanBuffer& plan) {
    const std::size_t count = std::min(holdings_.frozen.size(), plan.frozen_blocks.room());
    for (std::size_t i = 0; i < count; ++i) {
        const Holdings::Frozen& each = holdings_.frozen[i];
        if (holdings_.tree.holds(each.block, each.hash)) {
            plan.frozen_blocks.push(each.block.value);
            plan.frozen_names.push(each.hash.high);
        }
    }
    frozen_named_ = count;
}

void Planner::plan_decodes(PlanBuffer& plan) {
    Roster<Decoding>& decoding = holdings_.decoding;
    const std::int32_t rows_max =
        policy::decode_rows_max(options_.rows_per_step_max, !holdings_.prefilling.empty());
    const std::int32_t first = decode_next_ ? decoding.before(*decode_next_) : 0;
    decode_next_.reset();
    seats_.clear();
    for (std::int32_t i = 0; i < decoding.size(); ++i) {
        seats_.push_back(decoding.seat((first + i) % decoding.size()));
    }
    for (const Seat seat : seats_) {
        if (!decoding.contains(seat)) {
            continue;  // retracted by a row before it
        }
        if (plan.rows() == rows_max) {
            decode_next_ = decoding[seat].ledger->rank();
            return;
        }
        plan_decode(plan, seat);
    }
}

void Planner::plan_decode(PlanBuffer& plan, Seat seat) {
    Decoding& request = holdings_.decoding[seat];
    const Ledger& ledger = *request.ledger;
    if (!policy::may_sample(ledger.ask(), ledger.output_tokens(), request.samples_in_flight)) {
        return;  // its last token is in flight
    }
    if (planted(Plant::starved_row) && ledger.id().value % 5 == 3 && ledger.output_tokens() > 0) {
        return;
    }
    if (request.residence.planned / options_.block_tokens == request.residence.table.size()) {
        std::optional<BlockLease> lease = block_for(seat, plan.step);
        if (!lease) {
            return;
        }
        const BlockId block = lease->block();
        const std::int32_t index = request.residence.table.grow(std::move(*lease));
        if (!planted(Plant::dropped_delta) || plan.step.value % 7 != 3) {
            plan.add_delta(request.residence.slot.slot(), index, block);
        }
        holdings_.sessions.hold(ledger.session(), TierKind::device, 1, holdings_.now_us);
    }
    note_due(request);
    const std::int32_t token = request.samples_in_flight > 0 ? -1 : request.token_last;
    plan.work.add_decode(request.residence.planned + 1);
    add_row(plan, ledger, request.residence, std::span(&token, 1), true, true);
    ++request.samples_in_flight;
}

void Planner::note_due(const Decoding& request) {
    if (request.pace.promised()) {
        const auto ahead = static_cast<std::uint64_t>(request.samples_in_flight);
        const auto first_ns = static_cast<std::uint64_t>(start_us_ * 1000);
        due_least_ns_ = std::min(due_least_ns_, request.pace.due_after(ahead, first_ns));
    }
}

std::optional<BlockLease> Planner::block_for(Seat seat, StepId step) {
    const Rank rank = holdings_.decoding[seat].ledger->rank();
    while (true) {
        std::optional<BlockLease> lease = holdings_.try_block();
        if (lease || holdings_.flights_hold()) {
            return lease;  // or wait: a step in flight is about to give blocks back
        }
        const std::optional<Place> last = last_to_yield(step, rank);
        check(last.has_value(), Invariant::I10, "a decode row without a block is not among the running");
        const bool itself = holdings_.ledger(*last).rank() == rank;
        if (itself && holdings_.tiers.transfers() > 0) {
            return std::nullopt;  // wait: copies under way are about to give blocks back
        }
        if (itself && holdings_.scrub_if_stuck(1)) {
            continue;
        }
        holdings_.retract(*last);
        if (itself) {
            return std::nullopt;
        }
    }
}

std::optional<Place> Planner::last_to_yield(StepId step, Rank rank) const {
    const Roster<Prefilling>& prefilling = holdings_.prefilling;
    for (std::int32_t i = prefilling.size() - 1; options_.floor && i >= 0 && rank < prefilling.rank(i); --i) {
        if (prefilling[prefilling.seat(i)].ledger->output_tokens() == 0) {
            return Place{StateKind::prefilling, prefilling.seat(i)};
        }
    }
    return last_unplanned(step);
}

std::optional<Place> Planner::last_unplanned(StepId step) const {
    const Holdings& holdings = holdings_;
    std::optional<Place> last;
    if (!holdings.prefilling.empty()) {
        last = Place{StateKind::prefilling, holdings.prefilling.seat(holdings.prefilling.size() - 1)};
    }
    for (std::int32_t i = holdings.decoding.size() - 1; i >= 0; --i) {
        const Seat seat = holdings.decoding.seat(i);
        if (holdings.decoding[seat].residence.planned_last != step) {
            if (!last || holdings.ledger(*last).rank() < holdings.decoding.rank(i)) {
                last = Place{StateKind::decoding, seat};
            }
            break;
        }
    }
    return last;
}

std::int32_t Planner::chunk_room(const PlanBuffer& plan) const {
    if (plan.rows() == options_.rows_per_step_max) {
        return 0;
    }
    const std::int32_t step_room = options_.tokens_per_step_max - count_of(plan.tokens);
    return std::min(step_room, options_.prefill_tokens_max - prefill_tokens_);
}

std::int32_t Planner::chunk_length(const PlanBuffer& plan, std::int32_t planned, std::int32_t remaining) {
    const std::int32_t room = std::min(remaining, chunk_room(plan));
    if (due_least_ns_ == kNeverNs || room == 0) {
        return room;
    }
    const double budget_us = static_cast<double>(due_least_ns_) / 1000 - start_us_;
    const std::int32_t in_time = holdings_.cost.tokens_within(plan.work, planned, budget_us);
    if (in_time >= room) {
        return room;
    }
    starving_ = true;
    const std::int32_t length = policy::chunk_of(planned, remaining, in_time, options_.block_tokens);
    const bool starved = plans_starved_ >= policy::kPlansStarved && prefill_tokens_ == 0;
    return starved ? std::max(length, std::min(room, options_.block_tokens)) : length;
}

void Planner::plan_prefills(PlanBuffer& plan) {
    std::int32_t i = 0;
    while (i < holdings_.prefilling.size() && chunk_room(plan) > 0) {
        const Seat seat = holdings_.prefilling.seat(i);
        const Prefilling& request = holdings_.prefilling[seat];
        const std::int32_t planned = request.residence.planned;
        const std::int32_t length = chunk_length(plan, planned, request.ledger->tokens_known() - planned);
        if (length == 0) {
            return;
        }
        i += plan_chunk(plan, seat, length) ? 0 : 1;
    }
}

bool Planner::plan_chunk(PlanBuffer& plan, Seat seat, std::int32_t length) {
    Prefilling& request = holdings_.prefilling[seat];
    const bool is_last = length == request.ledger->tokens_known() - request.residence.planned;
    prefill_tokens_ += length;
    const auto tokens = request.ledger->tokens().subspan(static_cast<std::size_t>(request.residence.planned),
                                                         static_cast<std::size_t>(length));
    plan.work.add_chunk(request.residence.planned, length);
    add_row(plan, *request.ledger, request.residence, tokens, is_last, false);
    if (is_last) {
        holdings_.enter(on(holdings_.prefilling.extract(seat), LastChunk{}));
    }
    return is_last;
}

void Planner::plan_admissions(PlanBuffer& plan, std::uint64_t now_us) {
    while (!holdings_.blocked && !holdings_.waiting.empty() && chunk_room(plan) > 0) {
        if (!admit(plan, holdings_.waiting.seat(0), now_us)) {
            return;
        }
    }
}

bool Planner::keeps_floors(Ledger& ledger) {
    Work work;
    std::uint64_t interval_ns = kNeverNs;
    const auto add = [&](const Ledger& each, const Pace& pace) {
        work.add_decode(policy::context_at_worst(each.tokens_known(), each.output_tokens(), each.ask().tokens_max));
        interval_ns = pace.promised() ? std::min(interval_ns, pace.interval_ns) : interval_ns;
    };
    const auto keeps = [&] {
        return interval_ns == kNeverNs ||
               holdings_.cost.upper(work) <= policy::kDecodeShare * static_cast<double>(interval_ns) / 1000;
    };
    add(ledger, ledger.pace());
    if (!keeps()) {
        ledger.set_pace({});
        interval_ns = kNeverNs;
        holdings_.log.add(EventKind::decision,
                          {static_cast<std::uint64_t>(Reason::floor_unreachable), ledger.id().value, 0});
    }
    for (std::int32_t i = 0; i < holdings_.prefilling.size(); ++i) {
        const Prefilling& each = holdings_.prefilling[holdings_.prefilling.seat(i)];
        add(*each.ledger, each.ledger->pace());
    }
    for (std::int32_t i = 0; i < holdings_.decoding.size(); ++i) {
        const Decoding& each = holdings_.decoding[holdings_.decoding.seat(i)];
        add(*each.ledger, each.pace);
    }
    return work.decode_rows == 1 || keeps();
}

bool Planner::admit(PlanBuffer& plan, Seat seat, std::uint64_t now_us) {
    Ledger& ledger = *holdings_.waiting[seat].ledger;
    const std::int32_t blocks = policy::blocks_for(ledger.tokens_known(), options_.block_tokens);
    if (static_cast<std::size_t>(blocks) > plan.table_slots.room()) {
        return false;  // the next plan has room for its table
    }
    if (options_.floor && !keeps_floors(ledger)) {
        holdings_.block(ledger.id(), Reason::floor_full);
        return false;
    }
    if (holdings_.tiers.fetch(ledger, policy::hit_blocks_max(ledger.tokens_known(), options_.block_tokens),
                              holdings_.blocks_available(),
                              blocks + blocks_reserved())) {
        return false;  // until its KV has come up
    }
    auto [residence, missing] = try_residence(ledger, blocks, plan);
    if (!residence) {
        if (missing != Reason::least_slack) {
            holdings_.block(ledger.id(), missing);
        }
        return false;
    }
    residence->planned_last = plan.step;
    announce(plan, ledger, *residence);
    account_admission(ledger, *residence, now_us);
    const std::int32_t planned = residence->planned;
    const std::int32_t length = chunk_length(plan, planned, ledger.tokens_known() - planned);
    const Seat seated = holdings_.enter(on(holdings_.waiting.extract(seat), Admit{std::move(*residence)}));
    (void)plan_chunk(plan, seated, length);
    return true;
}

void Planner::account_admission(const Ledger& ledger, const Residence& residence, std::uint64_t now_us) {
    const bool is_first = ledger.output_tokens() == 0;
    const auto queue_us = static_cast<std::int64_t>(now_us - std::min(now_us, ledger.arrival_us()));
    holdings_.counters.queue_us += is_first ? static_cast<std::uint64_t>(queue_us) : 0;
    Session& session = holdings_.sessions[ledger.session()];
    for (Account* const account : {&session.account, &holdings_.share[session.tenant].account}) {
        account->queue_us += is_first ? queue_us : 0;
        account->tokens_prompt += ledger.tokens_known();
        account->tokens_cached += residence.planned;
    }
    holdings_.sessions.hold(ledger.session(), TierKind::device, residence.table.size(), holdings_.now_us);
    holdings_.share.serve(ledger.rank().key);
}

std::int32_t Planner::blocks_reserved() const {
    const std::int32_t running = holdings_.requests_running();
    return options_.floor ? policy::blocks_reserved_for_floor(running, options_.block_tokens)
                          : policy::blocks_reserved(running);
}

Planner::Found Planner::try_residence(const Ledger& ledger, std::int32_t blocks, const PlanBuffer& plan) {
    if (holdings_.slots.slots_free() == 0) {
        return {std::nullopt, Reason::no_slot};
    }
    const std::int32_t known = ledger.tokens_known();
    const auto hits_max = static_cast<std::size_t>(policy::hit_blocks_max(known, options_.block_tokens));
    const auto hashes = ledger.block_hashes();
    const PrefixTree::Match match = holdings_.tree.match(hashes.first(std::min(hits_max, hashes.size())));
    // Cached blocks that nobody uses yet count as available until this request takes them.
    const auto fits = [&] {
        const std::int32_t available = holdings_.blocks_available() - (match.size - match.in_use);
        return blocks - match.size + blocks_reserved() <= available;
    };
    if (!fits() && !(holdings_.scrub_if_stuck(0) && fits())) {
        return {std::nullopt, Reason::no_blocks};
    }
    const std::int32_t cached = std::min(match.size * options_.block_tokens, known - 1);
    if (chunk_length(plan, cached, known - cached) == 0) {
        return {std::nullopt, Reason::least_slack};  // it can run, but nothing of it in this step
    }
    Table table(holdings_.tree.lease(match), BlockList(holdings_.pool));
    table.reserve(blocks);
    while (table.size() < blocks) {
        std::optional<BlockLease> lease = holdings_.try_block();
        check(lease.has_value(), Invariant::I1, "available blocks cannot be had");
        (void)table.grow(std::move(*lease));
    }
    return {Residence{*holdings_.slots.try_lease(), std::move(table), BindingId{++bindings_}, cached, cached}};
}

void Planner::announce(PlanBuffer& plan, const Ledger& ledger, const Residence& residence) {
    const SlotId slot = residence.slot.slot();
    const std::int32_t cached = residence.planned;
    const std::span<std::int32_t> blocks =
        plan.table_blocks.extend(static_cast<std::size_t>(residence.table.size()));
    residence.table.copy_blocks(blocks);
    std::ranges::fill(plan.table_slots.extend(blocks.size()), slot.value);
    std::ranges::generate(plan.table_indexes.extend(blocks.size()), [i = 0]() mutable { return i++; });
    plan.bound_slots.push(slot.value);
    plan.bound_request_ids.push(ledger.id().value);
    plan.cached_tokens.push(cached);
    const auto known = ledger.block_hashes();
    const std::int32_t most = policy::hit_blocks_max(ledger.tokens_known(), options_.block_tokens);
    const Misses::Miss miss = holdings_.misses.judge(
        ledger.terms().session, known.first(std::min(static_cast<std::size_t>(most), known.size())),
        cached / options_.block_tokens);
    plan.miss_reasons.push(static_cast<std::uint8_t>(miss.reason));
    if (options_.stamps) {
        const auto hashes = ledger.block_hashes().first(static_cast<std::size_t>(cached / options_.block_tokens));
        std::ranges::transform(hashes, plan.cached_names.extend(hashes.size()).begin(), &Hash128::high);
    }
    holdings_.tiers.forget(ledger.id());
    holdings_.counters.tokens_queried += ledger.tokens_known();
    holdings_.counters.tokens_hit += cached;
    holdings_.log.add(EventKind::bind, {ledger.id().value, static_cast<std::uint64_t>(slot.value),
                                        static_cast<std::uint64_t>(cached)});
}

void Planner::add_row(PlanBuffer& plan, const Ledger& ledger, Residence& residence,
                      std::span<const std::int32_t> tokens, bool sampled, bool decode) {
    const std::int32_t end = residence.planned + count_of(tokens);
    check(!tokens.empty() && end <= residence.table.size() * options_.block_tokens, Invariant::I7,
          "a planned token has no block");
    plan.request_ids.push(ledger.id().value);
    plan.slots.push(residence.slot.slot().value);
    plan.starts.push(residence.planned);
    plan.lengths.push(count_of(tokens));
    plan.sampled.push(sampled ? 1 : 0);
    std::ranges::copy(tokens, plan.tokens.extend(tokens.size()).begin());
    residence.planned = end;
    residence.planned_last = plan.step;
    const Session& session = holdings_.sessions[ledger.session()];
    holdings_.flights.next().add_row({.request = ledger.id(),
                                      .binding = residence.binding,
                                      .computed = end,
                                      .sampled = sampled,
                                      .work = {residence.planned - count_of(tokens), count_of(tokens), decode},
                                      .session = ledger.session(),
                                      .session_id = session.id,
                                      .tenant = session.tenant});
}

}  // namespace tokenspeed
