// SPDX-License-Identifier: MIT
#include "sched/event_log.h"

#include <bit>
#include <utility>

namespace tokenspeed {
namespace {

void put_varint(std::vector<std::uint8_t>& out, std::uint64_t value) {
    while (value >= 0x80U) {
        out.push_back(static_cast<std::uint8_t>(value | 0x80U));
        value >>= 7U;
    }
    out.push_back(static_cast<std::uint8_t>(value));
}

std::size_t varint_bytes(std::uint64_t value) {
    return value < 0x80U ? 1 : 1 + varint_bytes(value >> 7U);
}

}  // namespace

EventLog::EventLog(std::int32_t bytes_max, std::uint64_t seed, bool journal)
    : ring_(std::bit_floor(static_cast<std::size_t>(bytes_max))),
      mask_(ring_.size() - 1),
      seed_(seed),
      journals_(journal) {}

void EventLog::add(EventKind kind, std::initializer_list<std::uint64_t> fields) {
    payload_.clear();
    for (const std::uint64_t field : fields) {
        put_varint(payload_, field);
    }
    ring(kind);
    if (journals_) {
        journal(kind);
    }
}

void EventLog::note(EventKind kind, std::span<const std::uint64_t> fields) {
    if (!journals_) {
        return;
    }
    payload_.clear();
    for (const std::uint64_t field : fields) {
        put_varint(payload_, field);
    }
    journal(kind);
}

void EventLog::note(EventKind kind, std::string_view text) {
    if (journals_) {
        payload_.assign(text.begin(), text.end());
        journal(kind);
    }
}

std::size_t EventLog::oldest() const {
    std::size_t length = 0;
    std::size_t head = 1;
    for (unsigned shift = 0;; shift += 7) {
        const std::uint8_t part = byte(start_ + head++);
        length |= static_cast<std::size_t>(part & 0x7FU) << shift;
        if (part < 0x80U) {
            return head + length;
        }
    }
}

void EventLog::ring(EventKind kind) {
    const std::size_t bytes = 1 + varint_bytes(payload_.size()) + payload_.size();
    while (ring_.size() - size_ < bytes) {
        const std::size_t gone = oldest();
        start_ = (start_ + gone) & mask_;
        size_ -= gone;
        ++dropped_;
    }
    put(static_cast<std::uint8_t>(kind));
    put(static_cast<std::uint8_t>(payload_.size()));  // at most twelve fields: below 128
    for (const std::uint8_t each : payload_) {
        put(each);
    }
}

void EventLog::journal(EventKind kind) {
    journal_.push_back(static_cast<std::uint8_t>(kind));
    put_varint(journal_, payload_.size());
    journal_.insert(journal_.end(), payload_.begin(), payload_.end());
    ++journaled_;
}

EventLog::Part EventLog::take() {
    return {std::exchange(journal_, {}), std::exchange(taken_, journaled_)};
}

std::vector<std::uint8_t> EventLog::snapshot() const {
    std::vector<std::uint8_t> out{'T', 'S', 'L', '2'};
    for (const std::uint64_t word : {seed_, dropped_}) {
        for (unsigned shift = 0; shift < 64; shift += 8) {
            out.push_back(static_cast<std::uint8_t>(word >> shift));
        }
    }
    for (std::size_t i = 0; i < size_; ++i) {
        out.push_back(byte(start_ + i));
    }
    return out;
}

}  // namespace tokenspeed
