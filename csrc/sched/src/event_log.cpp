// SPDX-License-Identifier: MIT
#include "sched/event_log.h"

#include <array>
#include <bit>

namespace tokenspeed {

EventLog::EventLog(std::int32_t bytes_max, std::uint64_t seed)
    : ring_(std::bit_floor(static_cast<std::size_t>(bytes_max))), mask_(ring_.size() - 1), seed_(seed) {}

void EventLog::add(EventKind kind, std::initializer_list<std::uint64_t> fields) {
    std::array<std::uint8_t, 80> payload;  // eight fields of at most ten bytes
    std::size_t bytes = 0;
    for (std::uint64_t field : fields) {
        while (field >= 0x80U) {
            payload[bytes++] = static_cast<std::uint8_t>(field | 0x80U);
            field >>= 7U;
        }
        payload[bytes++] = static_cast<std::uint8_t>(field);
    }
    while (ring_.size() - size_ < bytes + 2) {
        const std::size_t oldest = 2U + byte(start_ + 1);
        start_ = (start_ + oldest) & mask_;
        size_ -= oldest;
        ++dropped_;
    }
    put(static_cast<std::uint8_t>(kind));
    put(static_cast<std::uint8_t>(bytes));
    for (std::size_t i = 0; i < bytes; ++i) {
        put(payload[i]);
    }
}

std::vector<std::uint8_t> EventLog::snapshot() const {
    std::vector<std::uint8_t> out{'T', 'S', 'L', '1'};
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
