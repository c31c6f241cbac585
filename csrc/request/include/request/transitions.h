// SPDX-License-Identifier: MIT
// The transitions: on(State&&, Event). A transition that is not declared does not compile; none throws. A
// transition that stays in its state returns the same object. The table below is total over states x events.
#pragma once

#include <concepts>
#include <cstdint>
#include <utility>

#include "request/states.h"

namespace tokenspeed {

struct Enter {};  // its session is admitted
struct Admit {    // a slot, and a table of the cached path and blocks for every known token
    Residence residence;
};
struct LastChunk {};  // every known token is planned; the step samples the next
struct Computed {     // a step retired: KV of the first `tokens` tokens exists
    std::int32_t tokens;
};
struct Token {  // a sampled token that does not end the request
    std::int32_t token;
};
struct Stop {  // a sampled token that ends it, by its value or by its number
    std::int32_t token;
    FinishReason reason;
};
struct Fail {};     // the executor could not produce this row
struct Cancel {};   // the caller left
struct Expire {};   // its deadline passed before it began
struct Retract {};  // the blocks are needed by an earlier request; recompute later

// A retracted request waits again; what it held goes to the step in flight, or back.
struct Retracted {
    Waiting waiting;
    Residence leavings;
};

Waiting on(AtDoor&& from, Enter event);
Finished on(AtDoor&& from, Cancel event);
Finished on(AtDoor&& from, Expire event);
Prefilling on(Waiting&& from, Admit event);
Finished on(Waiting&& from, Cancel event);
Finished on(Waiting&& from, Expire event);
Decoding on(Prefilling&& from, LastChunk event);
Prefilling&& on(Prefilling&& from, Computed event);
Finished on(Prefilling&& from, Cancel event);
Retracted on(Prefilling&& from, Retract event);
Decoding&& on(Decoding&& from, Computed event);
Decoding&& on(Decoding&& from, Token event);
Finished on(Decoding&& from, Stop event);
Finished on(Decoding&& from, Fail event);
Finished on(Decoding&& from, Cancel event);
Retracted on(Decoding&& from, Retract event);

template <class State, class Event>
concept Accepts = requires(State state, Event event) { on(std::move(state), std::move(event)); };

static_assert(Accepts<AtDoor, Enter>);
static_assert(!Accepts<AtDoor, Admit>);
static_assert(!Accepts<AtDoor, LastChunk>);
static_assert(!Accepts<AtDoor, Computed>);
static_assert(!Accepts<AtDoor, Token>);
static_assert(!Accepts<AtDoor, Stop>);
static_assert(!Accepts<AtDoor, Fail>);
static_assert(Accepts<AtDoor, Cancel>);
static_assert(Accepts<AtDoor, Expire>);
static_assert(!Accepts<AtDoor, Retract>);

static_assert(!Accepts<Waiting, Enter>);
static_assert(Accepts<Waiting, Admit>);
static_assert(!Accepts<Waiting, LastChunk>);
static_assert(!Accepts<Waiting, Computed>);
static_assert(!Accepts<Waiting, Token>);
static_assert(!Accepts<Waiting, Stop>);
static_assert(!Accepts<Waiting, Fail>);
static_assert(Accepts<Waiting, Cancel>);
static_assert(Accepts<Waiting, Expire>);
static_assert(!Accepts<Waiting, Retract>);

static_assert(!Accepts<Prefilling, Enter>);
static_assert(!Accepts<Prefilling, Admit>);
static_assert(Accepts<Prefilling, LastChunk>);
static_assert(Accepts<Prefilling, Computed>);
static_assert(!Accepts<Prefilling, Token>);
static_assert(!Accepts<Prefilling, Stop>);
static_assert(!Accepts<Prefilling, Fail>);
static_assert(Accepts<Prefilling, Cancel>);
static_assert(!Accepts<Prefilling, Expire>);
static_assert(Accepts<Prefilling, Retract>);

static_assert(!Accepts<Decoding, Enter>);
static_assert(!Accepts<Decoding, Admit>);
static_assert(!Accepts<Decoding, LastChunk>);
static_assert(Accepts<Decoding, Computed>);
static_assert(Accepts<Decoding, Token>);
static_assert(Accepts<Decoding, Stop>);
static_assert(Accepts<Decoding, Fail>);
static_assert(Accepts<Decoding, Cancel>);
static_assert(!Accepts<Decoding, Expire>);
static_assert(Accepts<Decoding, Retract>);

static_assert(!Accepts<Finished, Enter>);
static_assert(!Accepts<Finished, Admit>);
static_assert(!Accepts<Finished, LastChunk>);
static_assert(!Accepts<Finished, Computed>);
static_assert(!Accepts<Finished, Token>);
static_assert(!Accepts<Finished, Stop>);
static_assert(!Accepts<Finished, Fail>);
static_assert(!Accepts<Finished, Cancel>);
static_assert(!Accepts<Finished, Expire>);
static_assert(!Accepts<Finished, Retract>);

static_assert(!std::copy_constructible<AtDoor>);
static_assert(!std::copy_constructible<Waiting> && !std::copy_constructible<Prefilling>);
static_assert(!std::copy_constructible<Decoding> && !std::copy_constructible<Finished>);

}  // namespace tokenspeed
