// SPDX-License-Identifier: MIT
// Scheduler::digest(): the state as one number, for replays and for exhaustive search. Step numbers, binding
// numbers and sequence numbers enter as order only: what decides, not how often it has decided.
#include <array>
#include <cstdint>

#include "base/hash.h"
#include "sched/scheduler.h"

namespace tokenspeed {
namespace {

class Digest {
 public:
    explicit Digest(const Holdings& holdings)
        : holdings_(holdings), value_(holdings.tiers.digest(holdings.retention.digest(holdings.tree.digest(holdings.pool.digest(1))))) {}

    void add(std::int64_t number) { value_ = digest_of(value_, std::span<const std::int64_t>(&number, 1)); }
    void add_ledger(const Ledger& ledger) {
        add(static_cast<std::int64_t>(ledger.id().value));
        value_ = digest_of(value_, ledger.tokens());
    }
    void add_residence(const Residence& residence) {
        add(residence.slot.slot().value);
        std::vector<std::int32_t> blocks(static_cast<std::size_t>(residence.table.size()));
        residence.table.copy_blocks(blocks);
        value_ = digest_of(value_, std::span<const std::int32_t>(blocks));
        add(residence.table.path().size());
        add(residence.planned);
        add(residence.computed);
    }
    void add_flight(const InFlight& flight) {
        for (const InFlight::Row& row : flight.rows()) {
            const std::optional<Place> place = holdings_.find(row.request);
            const bool resident = place && place->kind != StateKind::waiting && place->kind != StateKind::at_door;
            const bool alive = resident && binding(*place) == row.binding;
            add(static_cast<std::int64_t>(row.request.value));
            add(alive ? row.computed : -1);
            add(row.sampled ? 1 : 0);
        }
        for (const Residence& each : flight.residences()) {
            add_residence(each);
        }
        for (const BlockList& each : flight.blocks()) {
            add(each[0].value);
        }
    }
    [[nodiscard]] std::uint64_t value() const { return value_; }

 private:
    [[nodiscard]] BindingId binding(Place place) const {
        return place.kind == StateKind::prefilling ? holdings_.prefilling[place.seat].residence.binding
                                                   : holdings_.decoding[place.seat].residence.binding;
    }

    const Holdings& holdings_;
    std::uint64_t value_;
};

}  // namespace

std::uint64_t Scheduler::digest() const {
    Digest digest(holdings_);
    for (std::int32_t i = 0; i < holdings_.waiting.size(); ++i) {
        digest.add_ledger(*holdings_.waiting[holdings_.waiting.seat(i)].ledger);
    }
    if (options_.session_admission) {
        for (std::int32_t i = 0; i < holdings_.door.size(); ++i) {
            digest.add_ledger(*holdings_.door[holdings_.door.seat(i)].ledger);
        }
        digest.add(static_cast<std::int64_t>(holdings_.sessions.digest(0)));
    }
    digest.add(-1);
    for (std::int32_t i = 0; i < holdings_.prefilling.size(); ++i) {
        const Prefilling& each = holdings_.prefilling[holdings_.prefilling.seat(i)];
        digest.add_ledger(*each.ledger);
        digest.add_residence(each.residence);
    }
    digest.add(-2);
    for (std::int32_t i = 0; i < holdings_.decoding.size(); ++i) {
        const Decoding& each = holdings_.decoding[holdings_.decoding.seat(i)];
        digest.add_ledger(*each.ledger);
        digest.add_residence(each.residence);
        digest.add(each.samples_in_flight);
    }
    for (std::int32_t i = 0; i < holdings_.flights.size(); ++i) {
        digest.add(-3);
        digest.add_flight(holdings_.flights[i]);
    }
    for (const Holdings::PendingRedirect& each : holdings_.redirects) {
        digest.add(each.slot.value);
        digest.add(each.index);
        digest.add(each.block.value);
    }
    for (const Ended& each : ended_) {
        digest.add(static_cast<std::int64_t>(each.id.value));
    }
    const std::optional<Rank> next = planner_.decode_next();
    digest.add(next ? holdings_.decoding.before(*next) : -4);
    digest.add(holdings_.blocked ? 1 : 0);
    return digest.value();
}

}  // namespace tokenspeed
