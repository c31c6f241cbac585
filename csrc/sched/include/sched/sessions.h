// SPDX-License-Identifier: MIT
// Sessions: who the requests belong to, which of them may use KV, and what they have used.
//
//                  enter               try_admit                     last request of the family ends
//   (unknown) ------------> at door ---------------> admitted, busy <--------------------------------> admitted, idle
//                              ^                         |             another request enters              |
//                              +-------------------------+---- release: final, closed, or it gives way ----+
//
// The unit of admission is the family: a root session and the sub-agents that name it. Another is admitted while
// what the admitted have, or what so many of them have on average if that is more, leaves room for it in the KV of
// device and host. So the turns of an admitted session never wait for strangers. When somebody waits, families
// that have been idle longer than nearly all that came back give way; if they do come back, they go before
// strangers. A request without a session is a family of its own until it ends. With admission off everybody is
// admitted and nothing charged.
//
// Remembers a bounded number of sessions that nobody uses. Knows no rank: who is tried first is its caller's
// business. Reads no clock.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "request/ledger.h"
#include "sched/accounts.h"
#include "sched/event_log.h"
#include "sched/fair_share.h"
#include "sched/options.h"
#include "sched/reason.h"

namespace tokenspeed {

struct Session {
    SessionId id{};
    TenantIndex tenant{};
    SessionIndex root = kNoSession;  // itself, where it is one
    std::int32_t requests_live = 0;
    std::int32_t turns = 0;    // requests that have ended
    std::int32_t blocks = 0;   // of its latest context
    bool closing = false;      // no further request will come
    bool gave_way = false;     // and has not come back
    bool returning = false;    // it has, and waits at the door
    // of the family, in its root
    std::int32_t family = 0;         // further sessions that are remembered
    std::int32_t family_live = 0;    // requests
    std::int32_t family_blocks = 0;
    bool admitted = false;
    std::uint64_t door_since_us = 0;  // its first request at the door; 0: nobody is there
    std::uint64_t idle_since_us = 0;
    // in the list of idle roots, or in that of sessions that may be forgotten
    enum class List : std::uint8_t { none, idle, resting } list = List::none;
    SessionIndex older = kNoSession;
    SessionIndex younger = kNoSession;

    Account account;
    std::array<Holding, kTiers> held{};
};

class Sessions {
 public:
    Sessions(const Options& options, EventLog& log);

    // A request is here that will come to need `blocks_needed`, of which its prompt fills `blocks_prompt`.
    SessionIndex enter(const Terms& terms, TenantIndex tenant, std::int32_t blocks_prompt,
                       std::int32_t blocks_needed, std::uint64_t now_us);
    // One of its requests has ended with a context of so many blocks.
    void leave(SessionIndex index, std::int32_t blocks, bool final, std::uint64_t now_us);
    // No further request will come.
    void close(SessionId id, std::uint64_t now_us);

    [[nodiscard]] bool admitted(SessionIndex index) const { return !admission_ || root_of(index).admitted; }
    // The family waits at the door from now on.
    void wait(SessionIndex index, std::uint64_t now_us);
    // Admit the family if it fits; or, if the device has time to `spare`, now and then one that does not; or if it
    // has waited for as long as any may.
    bool try_admit(SessionIndex index, bool spare, std::uint64_t now_us);
    // May its tenant have another family, beside the tenants that have some?
    [[nodiscard]] bool within_share(SessionIndex index) const;
    // Admit it if it has; true where that is new.
    bool try_admit_aged(SessionIndex index, std::uint64_t now_us);
    // Release the family that has been idle longest, if that is long enough.
    bool make_way(std::uint64_t now_us);

    // What a family that comes now would wait for its admission behind `ahead` others.
    [[nodiscard]] std::uint64_t wait_us(std::int32_t ahead) const;
    [[nodiscard]] const Session* find(SessionId id) const;
    Session& operator[](SessionIndex index) { return records_[index.index()]; }
    const Session& operator[](SessionIndex index) const { return records_[index.index()]; }
    // The record that a row belongs to whose request has ended meanwhile.
    Session& late(SessionId id);
    void hold(SessionIndex index, TierKind tier, std::int64_t more_blocks, std::uint64_t now_us);

    // What the admitted are taken to need.
    [[nodiscard]] std::int64_t blocks_charged() const;
    [[nodiscard]] std::int64_t blocks_budget() const { return budget_; }
    [[nodiscard]] std::int32_t families_admitted() const { return families_admitted_; }
    // Of a session, on average over its turns.
    [[nodiscard]] std::int64_t blocks_expected() const { return static_cast<std::int64_t>(expected_); }
    // Families at the door that go before strangers.
    [[nodiscard]] std::int32_t returning() const { return returning_; }
    [[nodiscard]] bool returns(SessionIndex index) const { return root_of(index).returning; }
    // What sessions that are no longer remembered have used.
    [[nodiscard]] const Account& forgotten() const { return forgotten_.account; }
    // Every account, summed: what all steps took.
    [[nodiscard]] Account total() const;
    [[nodiscard]] std::uint64_t digest(std::uint64_t seed) const;
    // Asserts I12 over the records.
    void check_sessions() const;

 private:
    struct Ends {
        SessionIndex oldest = kNoSession;
        SessionIndex youngest = kNoSession;
    };

    [[nodiscard]] const Session& root_of(SessionIndex index) const { return (*this)[(*this)[index].root]; }
    Session& root_of(SessionIndex index) { return (*this)[(*this)[index].root]; }
    SessionIndex record_of(SessionId id, SessionIndex root, TenantIndex tenant);
    SessionIndex make(SessionId id, TenantIndex tenant);
    void set_blocks(SessionIndex index, std::int32_t blocks);
    // A gap between two turns; how long a family must be idle to give way.
    void add_gap(std::uint64_t gap_us);
    [[nodiscard]] std::uint64_t idle_bound_us() const;
    void release(SessionIndex root, Reason reason, std::uint64_t now_us);
    // Put a record into the list it belongs to now, and forget the oldest where too many rest.
    void settle(SessionIndex index, std::uint64_t now_us);
    void forget(SessionIndex index);
    [[nodiscard]] Ends& ends(Session::List list) { return list == Session::List::idle ? idle_ : resting_; }
    void link(Session::List list, SessionIndex index);
    void unlink(SessionIndex index);

    bool admission_;
    bool fair_;
    std::int32_t sessions_max_;
    std::uint64_t aging_us_;
    std::uint64_t idle_us_;
    std::int64_t budget_;
    bool learns_;
    double expected_;  // blocks of a session
    static constexpr std::size_t kGapBins = 32;
    std::array<std::uint32_t, kGapBins> gaps_{};  // by powers of two of milliseconds
    std::uint32_t gaps_seen_ = 0;
    EventLog& log_;

    std::vector<Session> records_;
    std::vector<SessionIndex> free_;
    std::unordered_map<SessionId, SessionIndex> index_;
    Ends idle_;     // admitted roots without a request, longest idle first
    Ends resting_;  // those that may be forgotten, longest unused first
    std::int32_t resting_count_ = 0;
    std::int64_t admitted_blocks_ = 0;  // of admitted families
    std::int64_t single_blocks_ = 0;    // of these, of requests without a session
    struct Holder {
        std::int32_t families = 0;
        std::int64_t blocks = 0;
    };
    void count(const Session& root, std::int32_t families, std::int64_t blocks);
    std::vector<Holder> holders_;   // by tenant: what is admitted
    std::int64_t tenants_active_ = 0;  // that have some
    std::uint64_t spared_us_ = 0;   // when the last was admitted beyond the budget
    std::int32_t families_admitted_ = 0;
    std::int32_t singles_admitted_ = 0;
    std::int32_t returning_ = 0;
    Session forgotten_;
    // departures of families, for those who wait
    std::uint64_t released_us_ = 0;
    double release_gap_us_ = 10e6;
};

}  // namespace tokenspeed
