// SPDX-License-Identifier: MIT
// EventLog: the events of a scheduler in order: what came in, what was decided. Always on, in a ring of bytes; a
// step costs at most 200. With `journal`, the same and what replay needs besides goes to a buffer that somebody
// takes away in time, from the first event on.
//
//   snapshot, journal: "TSL2", seed u64, records before the first u64, then records
//   record:            kind u8, length of the payload LEB128, payload: LEB128 varints, but for `options` (text)
//
// Format and fields: docs/reference/event-log.md. A journal reproduces every decision bit for bit and holds no
// token: a full block is a number drawn from its keyed hash (31 bits), any other token is 0.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "base/hash.h"

namespace tokenspeed {

enum class EventKind : std::uint8_t {
    // In the ring and in the journal. Signed numbers are zigzag.
    submit = 1,   // request, prompt tokens, tokens_max, status, digest of the prompt, now_us, tokens_min, priority
                  // (signed), stop ids
    cancel = 2,   // request, was it alive
    plan = 3,     // step, now_us, rows, decode rows, tokens, digest of the plan, context tokens, prefill pairs
    bind = 4,     // request, slot, cached tokens
    retract = 5,  // request
    finish = 6,   // request, reason
    commit = 7,   // step, samples, digest of the tokens, now_us, step_us
    late = 8,     // step of a result that nobody waits for
    flush = 9,    // blocks freed
    terms = 10,   // request, session, root, tenant, floor_mtps, deadline_us, retain_us, final; before its submit
    idle_session = 11,   // session, idle class, gap key, now_us
    close_session = 12,  // session, now_us
    decision = 13,       // reason, what it is about (a request, a root session), a number
    no_plan = 14,        // now_us: nothing could run
    transferred = 15,    // first copy, copies, result, now_us: a run of equal reports
    corrupt = 16,        // block of the device that does not hold what was stored, now_us
    adopt = 17,          // tier, blocks offered, blocks placed, digest of their hashes
    // In the journal alone.
    options = 64,  // text: a line "name=value" for each, first of all
    prompt = 65,   // request, salt (a keyed number), then a number for each full block; after its submit
    rows = 66,     // step, then request and 2 * new tokens + sampled for each row; where they are not those of the
                   // plan before; before its plan
    results = 67,  // step, then place among the samples and what it was (Said) for each that is not 0; after its
                   // commit
};

// What a result means to the scheduler, without saying it.
enum class Said : std::uint32_t {
    token = 0,   // a token that ends no block
    failed = 1,  // the row was not finite
    stop = 2,    // one that ended its request
    first = 3,   // from here on: 3 + the number of the block it completes
};

class EventLog {
 public:
    EventLog(std::int32_t bytes_max, std::uint64_t seed, bool journal);

    void add(EventKind kind, std::initializer_list<std::uint64_t> fields);
    // To the journal alone; nothing without one.
    void note(EventKind kind, std::span<const std::uint64_t> fields);
    void note(EventKind kind, std::string_view text);
    [[nodiscard]] bool journals() const { return journals_; }

    [[nodiscard]] std::vector<std::uint8_t> snapshot() const;
    // The journal's records since the last call; how many there were before the first of them.
    struct Part {
        std::vector<std::uint8_t> bytes;
        std::uint64_t records_before;
    };
    Part take();

    // The number that stands for a full block in a journal: equal blocks with equal history have equal ones.
    static std::uint32_t number_of(Hash128 hash) {
        constexpr std::uint64_t kNumbers = 0x7FFF'FFF0;  // a token id, and neither 0 nor one that is reserved
        return static_cast<std::uint32_t>(1 + hash.low % kNumbers);
    }

 private:
    [[nodiscard]] std::uint8_t byte(std::size_t at) const { return ring_[at & mask_]; }
    void put(std::uint8_t value) { ring_[(start_ + size_++) & mask_] = value; }
    void ring(EventKind kind);
    void journal(EventKind kind);
    // The record at the start of the ring, in bytes.
    [[nodiscard]] std::size_t oldest() const;

    std::vector<std::uint8_t> ring_;  // a power of two
    std::size_t mask_;
    std::size_t start_ = 0;
    std::size_t size_ = 0;
    std::uint64_t seed_;
    std::uint64_t dropped_ = 0;
    std::vector<std::uint8_t> payload_;  // scratch
    bool journals_;
    std::vector<std::uint8_t> journal_;
    std::uint64_t journaled_ = 0;  // records, ever
    std::uint64_t taken_ = 0;      // of these
};

}  // namespace tokenspeed
