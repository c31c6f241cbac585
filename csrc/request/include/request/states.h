// SPDX-License-Identifier: MIT
// The states of a request: each struct owns exactly the resources of that state, and moving it moves them.
//
//  AtDoor --> Finished: Cancel          A request is at the door until its session is admitted.
//    | Enter
//    v       Admit              LastChunk               Stop | Fail
//  Waiting --------> Prefilling ----------> Decoding -------------------> Finished
//   ^  |             |  ^    |               |  ^   |                      ^ ^ ^
//   |  |             |  +----+ Computed      |  +---+ Computed, Token      | | |
//   |  |   Retract   |                       |                             | | |
//   +--|-------------+-----------------------+                             | | |
//      +-----------------------------------------------------  Cancel  ----+-+-+
//
// A state says what can be planned next, not what the device has done: Prefilling has known tokens that no
// step computes yet; Decoding has none, its next row is the token after (which may still be in flight).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "base/ids.h"
#include "kv/table.h"
#include "request/ledger.h"
#include "request/pace.h"
#include "request/slot.h"

namespace tokenspeed {

// What a request owns while it runs. planned and computed count tokens from the start of the context.
struct Residence {
    SlotLease slot;
    Table table;
    BindingId binding;
    std::int32_t planned = 0;   // tokens that a launched step computes, or that the prefix tree held
    std::int32_t computed = 0;  // of these, tokens whose step has retired
    StepId planned_last{};      // the last step with a row of this request

    void clear() noexcept {
        table.clear();
        slot.give_back();
    }
};

struct AtDoor {
    std::unique_ptr<Ledger> ledger;
};

struct Waiting {
    std::unique_ptr<Ledger> ledger;
};

struct Prefilling {
    std::unique_ptr<Ledger> ledger;
    Residence residence;
};

struct Decoding {
    std::unique_ptr<Ledger> ledger;
    Residence residence;
    std::int32_t samples_in_flight = 0;
    // The ledger's last token, kept here because the ledger's own is a cache and TLB miss away in a long
    // context.
    std::int32_t token_last = -1;
    // For the same reason: the ledger's is as of when the request last waited.
    Pace pace{};
};

struct Finished {
    RequestId id;
    Terms terms;
    FinishReason reason = FinishReason::none;
    std::int32_t token = -1;            // the last token, -1 where the end came without one
    std::optional<Residence> leavings;  // to the step in flight, or given back at once
};

}  // namespace tokenspeed
