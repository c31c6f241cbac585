// SPDX-License-Identifier: MIT
// FairShare: the order of requests by what their tenants have used: start-time fair queueing (Goyal et al. 1996)
// over measured time of the device. And what each tenant has used.
//
//   key = max(virtual time, tag of the tenant);    tag = key + estimate, then corrected by what was measured
//
// A tenant that asks for ten times as much runs ahead of virtual time and waits for the others; one that was
// silent earns nothing by it. Every request that is served moves virtual time on, so nobody is overtaken for
// ever. Keys are given once, at submission, so that the order of requests stays sound.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "sched/accounts.h"

namespace tokenspeed {

using TenantIndex = Id<struct TenantIndexTag, std::int32_t>;

struct Tenant {
    TenantId id{};
    std::int64_t tag_ns = 0;
    std::int32_t requests_live = 0;
    Account account{};
};

class FairShare {
 public:
    // What a request is taken to cost until it has ended.
    static constexpr std::int64_t kEstimateNs = 500'000'000;
    // Tenants told apart; all further ones are one with those that have no name.
    static constexpr std::size_t kTenantsMost = 1024;

    FairShare() { tenants_.reserve(kTenantsMost); }

    TenantIndex find_or_make(TenantId id) {
        if (tenants_.empty()) {
            tenants_.push_back({});
        }
        if (id.value == 0) {
            return TenantIndex{0};
        }
        const auto found = index_.find(id);
        if (found != index_.end()) {
            return found->second;
        }
        if (tenants_.size() == kTenantsMost) {
            return TenantIndex{0};
        }
        const TenantIndex made{static_cast<std::int32_t>(tenants_.size())};
        tenants_.push_back({.id = id});
        index_.emplace(id, made);
        return made;
    }
    // A request of `tenant` is here: its place.
    std::int64_t enter(TenantIndex tenant) {
        Tenant& at = tenants_[tenant.index()];
        const std::int64_t key = std::max(virtual_ns_, at.tag_ns);
        at.tag_ns = key + kEstimateNs;
        ++at.requests_live;
        return key;
    }
    // A request with this key starts to run.
    void serve(std::int64_t key) { virtual_ns_ = std::max(virtual_ns_, key); }
    // Device time of one of its rows.
    void use(TenantIndex tenant, std::int64_t ns) { tenants_[tenant.index()].tag_ns += ns; }
    // A request has ended; what it really took is in the tag already.
    void leave(TenantIndex tenant) {
        Tenant& at = tenants_[tenant.index()];
        at.tag_ns -= kEstimateNs;
        --at.requests_live;
    }
    Tenant& operator[](TenantIndex tenant) { return tenants_[tenant.index()]; }
    [[nodiscard]] const std::vector<Tenant>& tenants() const { return tenants_; }
    [[nodiscard]] std::int64_t virtual_ns() const { return virtual_ns_; }

 private:
    std::vector<Tenant> tenants_;
    std::unordered_map<TenantId, TenantIndex> index_;
    std::int64_t virtual_ns_ = 0;
};

}  // namespace tokenspeed
