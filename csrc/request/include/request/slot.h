// SPDX-License-Identifier: MIT
// SlotLease: the right to a slot, a persistent row of executor state. Move-only; gives the slot back when it
// dies.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/bounded.h"
#include "base/ids.h"

namespace tokenspeed {

class SlotLease;

class SlotPool {
 public:
    explicit SlotPool(std::int32_t slots_max);
    SlotPool(const SlotPool&) = delete;
    SlotPool& operator=(const SlotPool&) = delete;

    [[nodiscard]] std::optional<SlotLease> try_lease();
    [[nodiscard]] std::int32_t slots_free() const { return count_of(free_); }

 private:
    friend class SlotLease;
    std::vector<SlotId> free_;
};

class [[nodiscard]] SlotLease {
 public:
    SlotLease(SlotLease&& from) noexcept : pool_(std::exchange(from.pool_, nullptr)), slot_(from.slot_) {}
    SlotLease& operator=(SlotLease&& from) noexcept;
    SlotLease(const SlotLease&) = delete;
    SlotLease& operator=(const SlotLease&) = delete;
    ~SlotLease() { give_back(); }

    void give_back() noexcept;
    [[nodiscard]] SlotId slot() const { return slot_; }

 private:
    friend class SlotPool;
    SlotLease(SlotPool& pool, SlotId slot) : pool_(&pool), slot_(slot) {}

    SlotPool* pool_;
    SlotId slot_;
};

}  // namespace tokenspeed
