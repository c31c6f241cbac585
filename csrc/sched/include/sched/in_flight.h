// SPDX-License-Identifier: MIT
// InFlight: a launched step that has not retired: what its rows will mean, and the leases of requests that
// ended meanwhile. The device may still read and write what it holds; only retire() gives it back.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/plant.h"
#include "request/states.h"
#include "sched/accounts.h"
#include "sched/fair_share.h"
#include "sched/step_cost.h"

namespace tokenspeed {

class InFlight {
 public:
    struct Row {
        RequestId request;
        BindingId binding;
        std::int32_t computed;  // tokens in KV once the step has retired
        bool sampled;
        RowWork work;
        SessionIndex session;  // whose it is, while the request lives
        SessionId session_id;
        TenantIndex tenant;
    };

    // Moved, never copied: it holds leases.
    InFlight() = default;
    InFlight(InFlight&&) = default;
    InFlight& operator=(InFlight&&) = default;
    InFlight(const InFlight&) = delete;
    InFlight& operator=(const InFlight&) = delete;
    ~InFlight() = default;

    void add_row(const Row& row) {
        rows_.push_back(row);
        samples_ += row.sampled ? 1 : 0;
    }
    void launch(StepId step, const Work& work, std::uint64_t planned_us) {
        step_ = step;
        work_ = work;
        planned_us_ = planned_us;
    }
    // The rest of a request that ended or was retracted, or a duplicate block, stays untouched until this
    // step retires.
    void hold(Residence&& leavings) {
        leavings.table.enter_flight();
        if (planted(Plant::slot_reused_early)) {
            leavings.slot.give_back();
        }
        residences_.push_back(std::move(leavings));
    }
    void hold(BlockList&& blocks) {
        blocks.enter_flight();
        blocks_.push_back(std::move(blocks));
    }
    // True where something came free.
    bool retire() {
        const bool freed = holds();
        residences_.clear();
        blocks_.clear();
        rows_.clear();
        samples_ = 0;
        return freed;
    }

    [[nodiscard]] StepId step() const { return step_; }
    [[nodiscard]] const Work& work() const { return work_; }
    [[nodiscard]] std::uint64_t planned_us() const { return planned_us_; }
    [[nodiscard]] std::int32_t samples() const { return samples_; }
    [[nodiscard]] const std::vector<Row>& rows() const { return rows_; }
    [[nodiscard]] bool holds() const { return !residences_.empty() || !blocks_.empty(); }
    [[nodiscard]] const std::vector<Residence>& residences() const { return residences_; }
    [[nodiscard]] const std::vector<BlockList>& blocks() const { return blocks_; }

 private:
    StepId step_{};
    Work work_{};
    std::uint64_t planned_us_ = 0;
    std::int32_t samples_ = 0;
    std::vector<Row> rows_;
    std::vector<Residence> residences_;
    std::vector<BlockList> blocks_;
};

}  // namespace tokenspeed
