// SPDX-License-Identifier: MIT
#include "request/transitions.h"

namespace tokenspeed {

namespace {

// Before it ran a request holds nothing but its ledger.
Finished end_before_work(const Ledger& ledger, FinishReason reason) {
    return {ledger.id(), ledger.terms(), reason, -1, std::nullopt};
}

}  // namespace

Waiting on(AtDoor&& from, Enter /*event*/) { return {std::move(from.ledger)}; }

Finished on(AtDoor&& from, Cancel /*event*/) { return end_before_work(*from.ledger, FinishReason::cancelled); }

Finished on(AtDoor&& from, Expire /*event*/) { return end_before_work(*from.ledger, FinishReason::deadline); }

Prefilling on(Waiting&& from, Admit event) { return {std::move(from.ledger), std::move(event.residence)}; }

Finished on(Waiting&& from, Cancel /*event*/) { return end_before_work(*from.ledger, FinishReason::cancelled); }

Finished on(Waiting&& from, Expire /*event*/) { return end_before_work(*from.ledger, FinishReason::deadline); }

Decoding on(Prefilling&& from, LastChunk /*event*/) {
    const Pace pace = from.ledger->pace();
    return {std::move(from.ledger), std::move(from.residence), 1, -1, pace};
}

Prefilling&& on(Prefilling&& from, Computed event) {
    from.residence.computed = event.tokens;
    return std::move(from);
}

Finished on(Prefilling&& from, Cancel /*event*/) {
    return {from.ledger->id(), from.ledger->terms(), FinishReason::cancelled, -1, std::move(from.residence)};
}

Retracted on(Prefilling&& from, Retract /*event*/) {
    return {Waiting{std::move(from.ledger)}, std::move(from.residence)};
}

Decoding&& on(Decoding&& from, Computed event) {
    from.residence.computed = event.tokens;
    return std::move(from);
}

Decoding&& on(Decoding&& from, Token event) {
    --from.samples_in_flight;
    from.token_last = event.token;
    from.ledger->append(event.token);
    return std::move(from);
}

Finished on(Decoding&& from, Stop event) {
    return {from.ledger->id(), from.ledger->terms(), event.reason, event.token, std::move(from.residence)};
}

Finished on(Decoding&& from, Fail /*event*/) {
    return {from.ledger->id(), from.ledger->terms(), FinishReason::error, -1, std::move(from.residence)};
}

Finished on(Decoding&& from, Cancel /*event*/) {
    return {from.ledger->id(), from.ledger->terms(), FinishReason::cancelled, -1, std::move(from.residence)};
}

Retracted on(Decoding&& from, Retract /*event*/) {
    from.ledger->set_pace(from.pace);
    return {Waiting{std::move(from.ledger)}, std::move(from.residence)};
}

}  // namespace tokenspeed
