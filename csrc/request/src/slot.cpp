// SPDX-License-Identifier: MIT
#include "request/slot.h"

namespace tokenspeed {

SlotPool::SlotPool(std::int32_t slots_max) {
    free_.reserve(static_cast<std::size_t>(slots_max));
    for (std::int32_t slot = slots_max - 1; slot >= 0; --slot) {
        free_.push_back(SlotId{slot});
    }
}

std::optional<SlotLease> SlotPool::try_lease() {
    if (free_.empty()) {
        return std::nullopt;
    }
    const SlotId slot = free_.back();
    free_.pop_back();
    return SlotLease(*this, slot);
}

SlotLease& SlotLease::operator=(SlotLease&& from) noexcept {
    if (this != &from) {
        give_back();
        pool_ = std::exchange(from.pool_, nullptr);
        slot_ = from.slot_;
    }
    return *this;
}

void SlotLease::give_back() noexcept {
    if (pool_ != nullptr) {
        std::exchange(pool_, nullptr)->free_.push_back(slot_);
    }
}

}  // namespace tokenspeed
