// SPDX-License-Identifier: MIT
// EventLog: the last events of a scheduler, always on, in a ring of bytes; a step costs at most 200.
//
// Snapshot: "TSL1", seed u64, records dropped u64, then records: kind u8, payload length u8, payload of
// LEB128 varints. With the prompts and results at hand (their digests are here) the events reproduce every
// decision.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace tokenspeed {

enum class EventKind : std::uint8_t {
    submit = 1,   // request, prompt tokens, tokens_max, status, digest of the prompt, now_us
    cancel = 2,   // request, was it alive
    plan = 3,     // step, now_us, rows, decode rows, tokens, digest of the plan
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
};

class EventLog {
 public:
    EventLog(std::int32_t bytes_max, std::uint64_t seed);

    void add(EventKind kind, std::initializer_list<std::uint64_t> fields);
    [[nodiscard]] std::vector<std::uint8_t> snapshot() const;

 private:
    [[nodiscard]] std::uint8_t byte(std::size_t at) const { return ring_[at & mask_]; }
    void put(std::uint8_t value) { ring_[(start_ + size_++) & mask_] = value; }

    std::vector<std::uint8_t> ring_;  // a power of two
    std::size_t mask_;
    std::size_t start_ = 0;
    std::size_t size_ = 0;
    std::uint64_t seed_;
    std::uint64_t dropped_ = 0;
};

}  // namespace tokenspeed
