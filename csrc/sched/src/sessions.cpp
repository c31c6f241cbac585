// SPDX-License-Identifier: MIT
#include "sched/sessions.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/hash.h"
#include "sched/policy.h"

namespace tokenspeed {
namespace {

// Measured on recorded sessions of coding agents: 69k tokens on average over their turns.
constexpr std::int64_t kSessionTokens = 70'000;
constexpr double kLearnShare = 1.0 / 256;
constexpr double kReleaseShare = 0.25;  // of a new interval between departures
// Idle sessions more may be admitted than the budget holds: some of them have gone for good. Measured: docs/log.
constexpr double kOvercommit = 1.1;
// A family gives way when it has been idle longer than so many of 64 gaps, and this at least.
constexpr std::uint32_t kGapShare = 62;
constexpr std::uint64_t kIdleLeastUs = 15'000'000;
// While the device has time to spare, recomputing what does not fit costs nobody anything: one more family each so
// often, so that what the last one brought can be seen.
constexpr std::uint64_t kSpareEveryUs = 2'000'000;
constexpr std::uint32_t kGapsMost = 4096;  // then older ones count half

double expected_at_first(const Options& options) {
    const std::int64_t tokens = options.session_tokens > 0
                                    ? options.session_tokens
                                    : std::min<std::int64_t>(kSessionTokens, options.context_tokens_max);
    return policy::blocks_for(tokens, options.block_tokens);
}

}  // namespace

Sessions::Sessions(const Options& options, EventLog& log)
    : admission_(options.session_admission),
      fair_(options.fair_share),
      sessions_max_(options.sessions_max),
      aging_us_(options.session_aging_us),
      idle_us_(options.session_idle_us),
      budget_(static_cast<std::int64_t>(kOvercommit * (options.blocks_total + static_cast<double>(options.host_blocks)))),
      learns_(options.session_tokens == 0),
      expected_(expected_at_first(options)),
      log_(log) {
    gaps_[16] = gaps_seen_ = 64;  // about a minute, until gaps are seen
}

SessionIndex Sessions::make(SessionId id, TenantIndex tenant) {
    if (free_.empty()) {
        free_.push_back(SessionIndex{count_of(records_)});
        records_.emplace_back();
    }
    const SessionIndex index = free_.back();
    free_.pop_back();
    Session& record = (*this)[index];
    record = Session{};
    record.id = id;
    record.tenant = tenant;
    record.root = index;
    if (id.value != 0) {
        index_.insert_or_assign(id, index);
    }
    return index;
}

SessionIndex Sessions::record_of(SessionId id, SessionIndex root, TenantIndex tenant) {
    const auto found = index_.find(id);
    if (found != index_.end()) {
        return found->second;
    }
    const SessionIndex made = make(id, tenant);
    if (root != kNoSession) {
        (*this)[made].root = root;
        ++(*this)[root].family;
    }
    return made;
}

SessionIndex Sessions::enter(const Terms& terms, TenantIndex tenant, std::int32_t blocks_prompt,
                             std::int32_t blocks_needed, std::uint64_t now_us) {
    SessionIndex index = kNoSession;
    if (terms.session.value == 0) {
        index = make({}, tenant);
    } else {
        SessionIndex root = kNoSession;
        if (terms.root.value != 0 && terms.root != terms.session) {
            root = (*this)[record_of(terms.root, kNoSession, tenant)].root;
            unlink(root);  // it is in use from here on: no record made below may push it out
        }
        index = record_of(terms.session, root, tenant);
    }
    Session& session = (*this)[index];
    Session& root = root_of(index);
    if (root.list == Session::List::idle) {
        add_gap(now_us - std::min(now_us, root.idle_since_us));
    }
    unlink(index);
    unlink(session.root);
    ++session.requests_live;
    ++root.family_live;
    session.closing = root.closing = false;
    if (terms.session.value == 0) {
        set_blocks(index, blocks_needed);
    } else {
        set_blocks(index, session.requests_live > 1 ? std::max(session.blocks, blocks_prompt) : blocks_prompt);
    }
    settle(session.root, now_us);
    return index;
}

void Sessions::leave(SessionIndex index, std::int32_t blocks, bool final, std::uint64_t now_us) {
    Session& session = (*this)[index];
    Session& root = root_of(index);
    const SessionIndex root_index = session.root;
    --session.requests_live;
    --root.family_live;
    ++session.turns;
    session.closing = session.closing || final || session.id.value == 0;
    if (session.id.value != 0) {
        set_blocks(index, blocks);
        expected_ += learns_ ? kLearnShare * (root.family_blocks - expected_) : 0;
        if (session.closing && session.requests_live == 0 && root_index != index) {
            set_blocks(index, 0);
        }
    }
    if (root.closing && root.family_live == 0 && root.admitted) {
        release(root_index, root.id.value == 0 ? Reason::none : Reason::session_final, now_us);
    }
    settle(index, now_us);
    if (root_index != index) {
        settle(root_index, now_us);
    }
}

void Sessions::close(SessionId id, std::uint64_t now_us) {
    const auto found = index_.find(id);
    if (found == index_.end()) {
        return;
    }
    const SessionIndex index = found->second;
    Session& session = (*this)[index];
    session.closing = true;
    if (session.root != index && session.requests_live == 0) {
        set_blocks(index, 0);
    }
    if (session.root == index && session.family_live == 0 && session.admitted) {
        release(index, Reason::session_closed, now_us);
    }
    settle(index, now_us);
}

void Sessions::wait(SessionIndex index, std::uint64_t now_us) {
    Session& root = root_of(index);
    returning_ += root.gave_way && !root.returning ? 1 : 0;
    root.returning = root.returning || root.gave_way;
    root.gave_way = false;
    root.door_since_us = root.door_since_us == 0 ? std::max<std::uint64_t>(now_us, 1) : root.door_since_us;
}

std::int64_t Sessions::blocks_charged() const {
    const std::int64_t expected = (families_admitted_ - singles_admitted_) * blocks_expected();
    return single_blocks_ + std::max(admitted_blocks_ - single_blocks_, expected);
}

bool Sessions::try_admit(SessionIndex index, bool spare, std::uint64_t now_us) {
    Session& root = root_of(index);
    if (root.admitted) {
        return true;
    }
    const bool single = root.id.value == 0;
    const std::int64_t needs =
        single ? root.family_blocks : std::max<std::int64_t>(root.family_blocks, blocks_expected());
    const bool fits = (blocks_charged() + needs <= budget_ && within_share(index)) || families_admitted_ == 0;
    const bool spared = !fits && spare && within_share(index) && now_us >= spared_us_ + kSpareEveryUs;
    const bool aged = root.door_since_us != 0 && now_us >= root.door_since_us + aging_us_;
    if (!fits && !spared && !aged) {
        return false;
    }
    spared_us_ = spared ? now_us : spared_us_;
    returning_ -= root.returning ? 1 : 0;
    root.returning = false;
    root.admitted = true;
    root.door_since_us = 0;
    count(root, 1, root.family_blocks);
    if (single) {
        ++singles_admitted_;
    } else {
        log_.add(EventKind::decision,
                 {static_cast<std::uint64_t>(fits     ? Reason::session_admitted
                                             : spared ? Reason::session_spared
                                                      : Reason::session_aged), root.id.value,
                  static_cast<std::uint64_t>(blocks_charged())});
    }
    return true;
}

bool Sessions::within_share(SessionIndex index) const {
    const Session& root = root_of(index);
    const Holder holder = root.tenant.index() < holders_.size() ? holders_[root.tenant.index()] : Holder{};
    const std::int64_t tenants = tenants_active_ + (holder.families == 0 ? 1 : 0);
    if (!fair_ || tenants == 1 || holder.families == 0) {
        return true;
    }
    const std::int64_t needs = std::max(holder.blocks, holder.families * blocks_expected());
    return (needs + blocks_expected()) * tenants <= budget_;
}

void Sessions::count(const Session& root, std::int32_t families, std::int64_t blocks) {
    if (root.tenant.index() >= holders_.size()) {
        holders_.resize(root.tenant.index() + 1);
    }
    Holder& holder = holders_[root.tenant.index()];
    tenants_active_ -= holder.families > 0 ? 1 : 0;
    holder.families += families;
    holder.blocks += blocks;
    tenants_active_ += holder.families > 0 ? 1 : 0;
    families_admitted_ += families;
    admitted_blocks_ += blocks;
    single_blocks_ += root.id.value == 0 ? blocks : 0;
}

bool Sessions::try_admit_aged(SessionIndex index, std::uint64_t now_us) {
    const Session& root = root_of(index);
    return !root.admitted && now_us >= root.door_since_us + aging_us_ && try_admit(index, false, now_us);
}

bool Sessions::make_way(std::uint64_t now_us) {
    const SessionIndex oldest = idle_.oldest;
    if (oldest == kNoSession || now_us < (*this)[oldest].idle_since_us + idle_bound_us()) {
        return false;
    }
    release(oldest, Reason::session_idle, now_us);
    (*this)[oldest].gave_way = true;
    settle(oldest, now_us);
    return true;
}

void Sessions::add_gap(std::uint64_t gap_us) {
    const auto bin = static_cast<std::size_t>(std::bit_width(gap_us / 1000));
    ++gaps_[std::min(bin, kGapBins - 1)];
    if (++gaps_seen_ == kGapsMost) {
        gaps_seen_ = 0;
        for (std::uint32_t& each : gaps_) {
            gaps_seen_ += each /= 2;
        }
    }
}

std::uint64_t Sessions::idle_bound_us() const {
    std::uint64_t below = 0;
    std::size_t bin = 0;
    while (bin + 1 < kGapBins && (below += gaps_[bin]) * 64 < std::uint64_t{gaps_seen_} * kGapShare) {
        ++bin;
    }
    return std::clamp((std::uint64_t{1} << bin) * 1000, std::min(kIdleLeastUs, idle_us_), idle_us_);
}

void Sessions::release(SessionIndex index, Reason reason, std::uint64_t now_us) {
    Session& root = (*this)[index];
    unlink(index);
    root.admitted = false;
    count(root, -1, -root.family_blocks);
    if (root.id.value == 0) {
        --singles_admitted_;
        return;
    }
    if (released_us_ != 0 && now_us >= released_us_) {
        release_gap_us_ += kReleaseShare * (static_cast<double>(now_us - released_us_) - release_gap_us_);
    }
    released_us_ = now_us;
    log_.add(EventKind::decision,
             {static_cast<std::uint64_t>(reason), root.id.value, static_cast<std::uint64_t>(blocks_charged())});
}

void Sessions::set_blocks(SessionIndex index, std::int32_t blocks) {
    Session& session = (*this)[index];
    Session& root = root_of(index);
    const std::int32_t more = blocks - session.blocks;
    root.family_blocks += more;
    if (root.admitted) {
        count(root, 0, more);
    }
    session.blocks = blocks;
}

void Sessions::settle(SessionIndex index, std::uint64_t now_us) {
    Session& session = (*this)[index];
    unlink(index);
    if (session.requests_live > 0 || session.family_live > 0) {
        return;
    }
    if (session.root == index && session.admitted) {
        session.idle_since_us = now_us;
        link(Session::List::idle, index);
        return;
    }
    session.door_since_us = 0;
    returning_ -= session.returning ? 1 : 0;
    session.gave_way = session.gave_way || session.returning;
    session.returning = false;
    if (session.id.value == 0) {
        forget(index);
        return;
    }
    if (session.family == 0) {
        link(Session::List::resting, index);
        if (resting_count_ > sessions_max_) {
            forget(resting_.oldest);
        }
    }
}

void Sessions::forget(SessionIndex index) {
    unlink(index);
    Session& session = (*this)[index];
    forgotten_.account.add(session.account);
    for (std::size_t tier = 0; tier < kTiers; ++tier) {
        forgotten_.held[tier].blocks += session.held[tier].blocks;
    }
    if (session.id.value != 0) {
        index_.erase(session.id);
    }
    const SessionIndex root = session.root;
    if (root != index) {
        set_blocks(index, 0);
        --(*this)[root].family;
        if ((*this)[root].list == Session::List::none) {
            settle(root, (*this)[root].idle_since_us);
        }
    }
    session = Session{};
    free_.push_back(index);
}

Session& Sessions::late(SessionId id) {
    const auto found = id.value == 0 ? index_.end() : index_.find(id);
    return found == index_.end() ? forgotten_ : (*this)[found->second];
}

void Sessions::hold(SessionIndex index, TierKind tier, std::int64_t more_blocks, std::uint64_t now_us) {
    Session& session = (*this)[index];
    const auto at = static_cast<std::size_t>(tier);
    session.account.block_us[at] += session.held[at].change(more_blocks, now_us);
}

std::uint64_t Sessions::wait_us(std::int32_t ahead) const {
    return static_cast<std::uint64_t>(release_gap_us_ * (ahead + 1));
}

const Session* Sessions::find(SessionId id) const {
    const auto found = index_.find(id);
    return found == index_.end() ? nullptr : &(*this)[found->second];
}

Account Sessions::total() const {
    Account sum = forgotten_.account;
    for (const Session& each : records_) {
        sum.add(each.account);
    }
    return sum;
}

void Sessions::link(Session::List list, SessionIndex index) {
    Session& session = (*this)[index];
    Ends& at = ends(list);
    session.list = list;
    session.older = at.youngest;
    session.younger = kNoSession;
    (at.youngest == kNoSession ? at.oldest : (*this)[at.youngest].younger) = index;
    at.youngest = index;
    resting_count_ += list == Session::List::resting ? 1 : 0;
}

void Sessions::unlink(SessionIndex index) {
    Session& session = (*this)[index];
    if (session.list == Session::List::none) {
        return;
    }
    Ends& at = ends(session.list);
    (session.older == kNoSession ? at.oldest : (*this)[session.older].younger) = session.younger;
    (session.younger == kNoSession ? at.youngest : (*this)[session.younger].older) = session.older;
    resting_count_ -= session.list == Session::List::resting ? 1 : 0;
    session.list = Session::List::none;
    session.older = session.younger = kNoSession;
}

std::uint64_t Sessions::digest(std::uint64_t seed) const {
    for (const Session& each : records_) {
        const std::int64_t facts[] = {static_cast<std::int64_t>(each.id.value), each.root.value, each.requests_live,
                                      each.blocks, each.returning ? 1 : 0, each.admitted ? 1 : 0, each.closing ? 1 : 0};
        seed = digest_of(seed, std::span<const std::int64_t>(facts));
    }
    for (SessionIndex at = idle_.oldest; at != kNoSession; at = (*this)[at].younger) {
        seed = digest_of(seed, std::span<const SessionIndex>(&at, 1));
    }
    return seed;
}

void Sessions::check_sessions() const {
    std::int64_t charged = 0;
    std::int32_t admitted = 0;
    std::int32_t returning = 0;
    std::vector<std::int32_t> live(records_.size(), 0);
    std::vector<std::int32_t> blocks(records_.size(), 0);
    for (std::size_t i = 0; i < records_.size(); ++i) {
        const Session& each = records_[i];
        if (each.root == kNoSession) {
            continue;  // a free record
        }
        live[each.root.index()] += each.requests_live;
        blocks[each.root.index()] += each.blocks;
        charged += each.admitted ? each.family_blocks : 0;
        admitted += each.admitted ? 1 : 0;
        returning += each.returning ? 1 : 0;
        check(!each.admitted || !each.returning, Invariant::I12, "an admitted session waits at the door");
        check((each.list == Session::List::idle) ==
                  (each.admitted && each.family_live == 0 && each.requests_live == 0),
              Invariant::I12, "the list of idle sessions disagrees with who is idle");
    }
    for (std::size_t i = 0; i < records_.size(); ++i) {
        const Session& each = records_[i];
        if (each.root == SessionIndex{static_cast<std::int32_t>(i)}) {
            check(live[i] == each.family_live && blocks[i] == each.family_blocks, Invariant::I12,
                  "a family disagrees with its sessions");
        }
    }
    check(charged == admitted_blocks_ && admitted == families_admitted_ && returning == returning_, Invariant::I12,
          "what is charged disagrees with who is admitted");
}

}  // namespace tokenspeed
