// SPDX-License-Identifier: MIT
#include "sched/sharing.h"

#include <algorithm>

#include "base/check.h"

namespace tokenspeed {

Sharing::Sharing(const Options& options)
    : blocks_min_(options.shared_blocks_min),
      tables_(static_cast<std::size_t>(options.slots_max)),
      row_of_(static_cast<std::size_t>(options.slots_max), -1) {
    order_.reserve(tables_.size());
}

void Sharing::mark(PlanBuffer& plan) {
    follow(plan);
    const auto slots = plan.slots.values().first(static_cast<std::size_t>(plan.decode_rows));
    if (changed_ || !std::ranges::equal(slots, slots_last_)) {
        slots_last_.assign(slots.begin(), slots.end());
        regroup(slots);
        changed_ = false;
    }
    for (const Group& each : groups_) {
        const auto rows = std::span(rows_).subspan(each.first, each.last - each.first);
        std::ranges::copy(rows, plan.group_rows.extend(rows.size()).begin());
        plan.group_sizes.push(count_of(rows));
        plan.group_blocks.push(each.blocks);
    }
}

void Sharing::forget(SlotId slot) {
    table(slot.value).clear();
    std::erase(order_, slot.value);
}

void Sharing::follow(const PlanBuffer& plan) {
    const auto bound = plan.bound_slots.values();
    for (const std::int32_t slot : bound) {
        check(table(slot).empty(), Invariant::I6, "a slot is bound whose table was not forgotten");
    }
    for (std::size_t i = 0; i < plan.table_slots.size(); ++i) {
        const std::int32_t slot = plan.table_slots.values()[i];
        const auto index = static_cast<std::size_t>(plan.table_indexes.values()[i]);
        std::vector<std::int32_t>& entries = table(slot);
        if (entries.empty() && std::ranges::find(bound, slot) == bound.end()) {
            continue;  // its request left the slot while this plan was made
        }
        if (index == entries.size()) {
            entries.push_back(plan.table_blocks.values()[i]);  // nobody else's block yet: the order holds
        } else if (index < entries.size()) {
            entries[index] = plan.table_blocks.values()[i];
            place(slot);
        }
    }
    for (const std::int32_t slot : bound) {
        place(slot);
    }
}

void Sharing::place(std::int32_t slot) {
    std::erase(order_, slot);
    const auto before = [this](std::int32_t one, std::int32_t other) {
        const auto at = static_cast<std::size_t>(common(one, other));
        const std::vector<std::int32_t>& a = table(one);
        const std::vector<std::int32_t>& b = table(other);
        return at < a.size() && at < b.size() ? a[at] < b[at] : a.size() < b.size();
    };
    order_.insert(std::ranges::lower_bound(order_, slot, before), slot);
    changed_ = true;
}

std::int32_t Sharing::common(std::int32_t one, std::int32_t other) const {
    const std::vector<std::int32_t>& a = tables_[static_cast<std::size_t>(one)];
    const std::vector<std::int32_t>& b = tables_[static_cast<std::size_t>(other)];
    std::size_t equal = 0;
    std::size_t unequal = std::min(a.size(), b.size());
    while (equal < unequal) {
        const std::size_t middle = equal + (unequal - equal) / 2;
        if (a[middle] == b[middle]) {
            equal = middle + 1;
        } else {
            unequal = middle;
        }
    }
    return static_cast<std::int32_t>(equal);
}

void Sharing::regroup(std::span<const std::int32_t> slots) {
    for (std::int32_t row = 0; row < count_of(slots); ++row) {
        row_of_[static_cast<std::size_t>(slots[static_cast<std::size_t>(row)])] = row;
    }
    rows_.clear();
    joints_.clear();
    groups_.clear();
    std::int32_t previous = -1;
    for (const std::int32_t slot : order_) {
        std::int32_t& row = row_of_[static_cast<std::size_t>(slot)];
        if (row >= 0) {
            if (previous >= 0) {
                joints_.push_back(common(previous, slot));
            }
            rows_.push_back(row);
            previous = slot;
            row = -1;
        }
    }
    (void)group(0, rows_.size());
}

std::int64_t Sharing::group(std::size_t first, std::size_t last) {
    if (last < first + 2) {
        return 0;
    }
    const auto joints = std::span(joints_).subspan(first, last - first - 1);
    const std::int32_t shallowest = *std::ranges::min_element(joints);
    const std::size_t before = groups_.size();
    std::int64_t apart = 0;
    std::size_t begin = first;
    for (std::size_t i = first; i + 1 < last; ++i) {
        if (joints_[i] == shallowest) {
            apart += group(begin, i + 1);
            begin = i + 1;
        }
    }
    apart += group(begin, last);
    const std::int64_t together = static_cast<std::int64_t>(last - first - 1) * shallowest;
    if (shallowest < blocks_min_ || together < apart) {
        return apart;
    }
    groups_.resize(before);
    groups_.push_back({first, last, shallowest});
    return together;
}

}  // namespace tokenspeed
