// SPDX-License-Identifier: MIT
// Sharing: which decode rows of a step begin with the same blocks, so that a kernel may read those once.
//
//   row 0   b7 b2 b9 b1 | own         Rows 0 and 3 share 4 blocks, all three share 2. A row is in one group
//   row 3   b7 b2 b9 b1 | own         at most; the groups of a plan are those that spare the most reads:
//   row 1   b7 b2 | own               {0, 3} with 4 blocks spares 4, {0, 1, 3} with 2 spares 4 as well.
//
// In: the plans, as they are made, and the slots that were left. Out: groups, written into the plan. Equal
// entries mean equal history (a block has one parent), so two tables agree up to a point and nowhere behind it:
// that point is a binary search, and tables in the order of their entries agree most with their neighbours. So
// a slot costs O(log slots * log blocks) when it is bound or redirected, and nothing while it decodes. Decides
// nothing else; a plan without groups is as right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "sched/options.h"
#include "sched/plan.h"

namespace tokenspeed {

class Sharing {
 public:
    explicit Sharing(const Options& options);

    // Follow the tables of a finished plan and write the groups of its decode rows into it.
    void mark(PlanBuffer& plan);
    // The slot's request has left it: its blocks may come to hold another history.
    void forget(SlotId slot);

 private:
    struct Group {
        std::size_t first;  // of `rows_`
        std::size_t last;
        std::int32_t blocks;
    };

    [[nodiscard]] std::vector<std::int32_t>& table(std::int32_t slot) {
        return tables_[static_cast<std::size_t>(slot)];
    }
    void follow(const PlanBuffer& plan);
    void place(std::int32_t slot);
    [[nodiscard]] std::int32_t common(std::int32_t one, std::int32_t other) const;
    void regroup(std::span<const std::int32_t> slots);
    // The best groups of rows_[first, last), appended to groups_: all in one, or each part between the
    // shallowest joints by itself. The blocks that need not be read.
    std::int64_t group(std::size_t first, std::size_t last);

    std::int32_t blocks_min_;
    std::vector<std::vector<std::int32_t>> tables_;  // by slot: block ids, empty where nobody is
    std::vector<std::int32_t> order_;                // the slots in use, by table
    bool changed_ = false;                           // a table, since the groups were made
    // the decode rows of the last plan and their groups
    std::vector<std::int32_t> slots_last_;
    std::vector<std::int32_t> rows_;    // in the order of their tables
    std::vector<std::int32_t> joints_;  // blocks that rows_[i] and rows_[i + 1] have in common
    std::vector<Group> groups_;
    std::vector<std::int32_t> row_of_;  // scratch, by slot: its row in the plan, -1 where it has none
};

}  // namespace tokenspeed
