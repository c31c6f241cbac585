// SPDX-License-Identifier: MIT
// The one file that knows Python exists: the scheduler as a Python object, its plans as numpy views without
// copies.
//
// Memory: plan and outcome buffers are numpy arrays made once; the scheduler writes into them and an accessor
// is a slice. As many plan buffers as steps that may be in flight, and one more: a plan is valid until its
// commit. The GIL is released inside submit, plan and commit. One thread plans and commits; a mutex lets any
// other submit, cancel and look meanwhile.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/plant.h"
#include "sched/reason.h"
#include "sched/scheduler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tokenspeed {
namespace {

using Numbers = nb::ndarray<const std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const std::int32_t> view(const Tokens& array) { return {array.data(), array.shape(0)}; }

template <class T>
const char* dtype_name();
template <>
const char* dtype_name<std::uint64_t>() {
    return "uint64";
}
template <>
const char* dtype_name<std::int32_t>() {
    return "int32";
}
template <>
const char* dtype_name<std::uint8_t>() {
    return "uint8";
}

// A numpy array of `capacity` values, as the memory of a Bounded.
template <class T>
nb::object make_memory(Bounded<T>& list, std::size_t capacity) {
    nb::object array = nb::module_::import_("numpy").attr("empty")(capacity, "dtype"_a = dtype_name<T>());
    const auto memory = nb::cast<nb::ndarray<T, nb::ndim<1>, nb::c_contig>>(array);
    list = Bounded<T>(std::span<T>(memory.data(), capacity));
    return array;
}

nb::object first(const nb::object& array, std::size_t count) {
    PyObject* const slice = PySequence_GetSlice(array.ptr(), 0, static_cast<Py_ssize_t>(count));
    if (slice == nullptr) {
        nb::raise_python_error();
    }
    return nb::steal(slice);
}

// A buffer and the arrays behind its lists, in the order of visit().
template <class Buffer>
struct Backed {
    Buffer buffer;
    std::vector<nb::object> arrays;

    explicit Backed(const Options& options) {
        buffer.visit(
            [this](auto& list, std::size_t capacity) { arrays.push_back(make_memory(list, capacity)); },
            options);
    }
};

using BackedPlan = Backed<PlanBuffer>;
using BackedOutcome = Backed<OutcomeBuffer>;

// What Python holds of a plan: numbers by value, arrays as slices of the buffer.
struct PlanView {
    const BackedPlan* backed;
    nb::object owner;  // the buffers live in the scheduler
    std::uint64_t step;
    std::int32_t rows;
    std::int32_t decode_rows;
    std::int32_t samples;
    Work work;
};

struct OutcomeView {
    nb::object request_ids;
    nb::object tokens;
    nb::object finish;
};

template <std::size_t kArray, auto kList>
nb::object plan_array(const PlanView& plan) {
    if (plan.backed->buffer.step.value != plan.step) {
        throw nb::value_error("this plan has been committed and its buffer is in use again");
    }
    return first(plan.backed->arrays[kArray], (plan.backed->buffer.*kList).size());
}

// An invariant broke: says which, and what is needed to see it again. The core stops on it.
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Runs `body`; to a broken invariant, adds the seed, the step and the last events (hexadecimal, newest last).
template <class Body>
auto dump_on_failure(const Scheduler& scheduler, Body&& body) {
    try {
        return body();
    } catch (const InvariantError& error) {
        constexpr std::size_t kBytesMost = 512;
        const std::vector<std::uint8_t> log = scheduler.log();
        std::string text = error.what();
        text += " (seed " + std::to_string(scheduler.options().seed) + ", step " +
                std::to_string(scheduler.stats().counters.steps) + ", last events ";
        for (std::size_t i = log.size() > kBytesMost ? log.size() - kBytesMost : 0; i < log.size(); ++i) {
            text += "0123456789abcdef"[log[i] >> 4U];
            text += "0123456789abcdef"[log[i] & 15U];
        }
        throw Failure(text + ")");
    }
}

class PyScheduler {
 public:
    explicit PyScheduler(const Options& options) : scheduler_(checked(options)), outcome_(options) {
        for (std::int32_t i = 0; i <= options.steps_in_flight_max(); ++i) {
            plans_.push_back(std::make_unique<BackedPlan>(options));
        }
    }

    SubmitStatus submit(std::uint64_t request_id, const Tokens& tokens, std::int32_t tokens_max,
                        std::int32_t tokens_min, const Tokens& stop_ids, const nb::bytes& salt,
                        std::int32_t priority, std::uint64_t now_us, std::uint64_t session,
                        std::uint64_t root, std::uint64_t tenant, std::int32_t floor_mtps,
                        std::uint64_t deadline_us, bool final, std::uint64_t retain_us) {
        const auto stops = view(stop_ids);
        const Submission submission{.id = RequestId{request_id},
                                    .prompt = view(tokens),
                                    .ask = {tokens_max, tokens_min, {stops.begin(), stops.end()}},
                                    .salt = {static_cast<const std::uint8_t*>(salt.data()), salt.size()},
                                    .terms = {.session = SessionId{session},
                                              .root = SessionId{root},
                                              .tenant = TenantId{tenant},
                                              .floor_mtps = floor_mtps,
                                              .deadline_us = deadline_us,
                                              .retain_us = retain_us,
                                              .final = final},
                                    .priority = priority,
                                    .now_us = now_us};
        return without_gil([&] { return scheduler_.submit(submission); });
    }

    bool cancel(std::uint64_t request_id) {
        return locked([&] { return scheduler_.cancel(RequestId{request_id}); });
    }

    static nb::object plan(nb::handle_t<PyScheduler> self, std::uint64_t now_us) {
        PyScheduler& own = nb::cast<PyScheduler&>(self);
        BackedPlan& backed = *own.plans_[own.plan_next_];
        const bool planned = own.without_gil([&] { return own.scheduler_.plan(backed.buffer, now_us); });
        if (!planned) {
            return nb::none();
        }
        own.plan_next_ = (own.plan_next_ + 1) % own.plans_.size();
        const PlanBuffer& buffer = backed.buffer;
        return nb::cast(PlanView{&backed, nb::borrow(self), buffer.step.value, buffer.rows(),
                                 buffer.decode_rows, buffer.samples, buffer.work});
    }

    OutcomeView commit(std::uint64_t step, const Tokens& tokens, std::uint64_t now_us, std::uint64_t step_us) {
        const CommitStatus status = without_gil([&] {
            return scheduler_.commit(StepId{step}, view(tokens), outcome_.buffer, now_us, step_us);
        });
        if (status == CommitStatus::wrong_size) {
            throw nb::value_error("commit takes one token per sampled row of the plan");
        }
        return copy_outcome();
    }

    void idle_session(std::uint64_t session, IdleClass idle, std::uint64_t gap_key, std::uint64_t now_us) {
        locked([&] { scheduler_.idle_session(SessionId{session}, idle, gap_key, now_us); });
    }

    void close_session(std::uint64_t session, std::uint64_t now_us) {
        locked([&] { scheduler_.close_session(SessionId{session}, now_us); });
    }

    void transferred(const Numbers& copies, const Bytes& results, std::uint64_t now_us) {
        if (copies.shape(0) != results.shape(0)) {
            throw nb::value_error("transferred takes one result per copy");
        }
        locked([&] {
            scheduler_.transferred({copies.data(), copies.shape(0)}, {results.data(), results.shape(0)}, now_us);
        });
    }

    void corrupt(const Tokens& blocks, std::uint64_t now_us) {
        locked([&] { scheduler_.corrupt(view(blocks), now_us); });
    }

    std::int32_t adopt(TierKind tier, const Tokens& blocks, const Numbers& hashes, const Numbers& parents) {
        if (hashes.shape(0) != 2 * blocks.shape(0) || parents.shape(0) != hashes.shape(0)) {
            throw nb::value_error("adopt takes two words of hash, and two of the one before, per block");
        }
        const auto words = [](const Numbers& array) {
            std::vector<Hash128> all;
            for (std::size_t i = 0; i + 1 < array.shape(0); i += 2) {
                all.push_back({array.data()[i], array.data()[i + 1]});
            }
            return all;
        };
        return locked([&] { return scheduler_.adopt(tier, view(blocks), words(hashes), words(parents)); });
    }

    OutcomeView drain() {
        locked([this] { scheduler_.drain(outcome_.buffer); });
        return copy_outcome();
    }

    nb::object tokens(std::uint64_t request_id) const {
        std::size_t count = 0;
        std::unique_ptr<std::int32_t[]> memory;
        locked([&] {
            const auto known = scheduler_.tokens(RequestId{request_id});
            count = known.size();
            memory = std::make_unique<std::int32_t[]>(count + 1);
            std::ranges::copy(known, memory.get());
        });
        const nb::capsule owner(memory.get(),
                                [](void* p) noexcept { delete[] static_cast<std::int32_t*>(p); });
        return nb::cast(nb::ndarray<nb::numpy, std::int32_t, nb::ndim<1>>(memory.release(), {count}, owner));
    }

    nb::bytes log() const {
        const std::vector<std::uint8_t> bytes = locked([this] { return scheduler_.log(); });
        return nb::bytes(bytes.data(), bytes.size());
    }

    nb::tuple take_journal() {
        const EventLog::Part part = locked([this] { return scheduler_.take_journal(); });
        return nb::make_tuple(nb::bytes(part.bytes.data(), part.bytes.size()), part.records_before);
    }

    std::int32_t flush_prefix() {
        return locked([this] { return scheduler_.flush_prefix(); });
    }

    void check() const {
        locked([this] { scheduler_.check(); });
    }

    bool idle() const {
        return locked([this] { return scheduler_.idle(); });
    }
    // A copy: the record may be forgotten.
    std::optional<Session> session(std::uint64_t id) const {
        return locked([&]() -> std::optional<Session> {
            const Session* const found = scheduler_.session(SessionId{id});
            return found == nullptr ? std::nullopt : std::optional(*found);
        });
    }
    std::vector<Tenant> tenants() const {
        return locked([this] { return scheduler_.tenants(); });
    }
    std::uint64_t retry_after_us() const {
        return locked([this] { return scheduler_.retry_after_us(); });
    }
    std::array<double, 5> prices() const {
        const StepCost cost = locked([this] { return scheduler_.cost().prices(); });
        return {cost.base_us, cost.row_us, cost.context_us, cost.token_us, cost.pair_us};
    }
    double step_error() const {
        return locked([this] { return scheduler_.cost().error_p99(); });
    }
    Stats stats() const {
        return locked([this] { return scheduler_.stats(); });
    }
    const Options& options() const { return scheduler_.options(); }

 private:
    template <class Body>
    std::invoke_result_t<Body&> locked(Body&& body) const {
        const std::lock_guard lock(mutex_);
        return dump_on_failure(scheduler_, body);
    }
    // The mutex is free again before the GIL is asked for, so neither can wait for the other.
    template <class Body>
    std::invoke_result_t<Body&> without_gil(Body&& body) const {
        const nb::gil_scoped_release released;
        return locked(body);
    }

    static const Options& checked(const Options& options) {
        if (const std::string fault = options.fault(); !fault.empty()) {
            throw nb::value_error(fault.c_str());
        }
        return options;
    }

    // An outcome outlives the next commit, so it owns copies: a few hundred bytes.
    [[nodiscard]] OutcomeView copy_outcome() const {
        const auto copy = [](const nb::object& array, std::size_t count) {
            return first(array, count).attr("copy")();
        };
        const OutcomeBuffer& buffer = outcome_.buffer;
        return {copy(outcome_.arrays[0], buffer.request_ids.size()),
                copy(outcome_.arrays[1], buffer.tokens.size()),
                copy(outcome_.arrays[2], buffer.finishes.size())};
    }

    mutable std::mutex mutex_;
    Scheduler scheduler_;
    std::vector<std::unique_ptr<BackedPlan>> plans_;
    std::size_t plan_next_ = 0;
    BackedOutcome outcome_;
};

using Prices = std::array<double, 5>;

HashKey key_of(const nb::bytes& bytes) {
    HashKey key;
    if (bytes.size() != sizeof(key)) {
        throw nb::value_error("hash_key must have 16 bytes");
    }
    std::memcpy(&key, bytes.data(), sizeof(key));
    return key;
}

void bind_options(nb::module_& m) {
    nb::class_<Options>(m, "SchedulerOptions", "Budgets of a scheduler; plain values, read once.")
        .def(
            "__init__",
            [](Options* self, std::int32_t blocks_total, std::int32_t block_tokens, std::int32_t slots_max,
               std::int32_t tokens_per_step_max, std::int32_t rows_per_step_max,
               std::int32_t prefill_tokens_max, std::int32_t waiting_max, std::int32_t context_tokens_max,
               bool prefix_cache, bool overlap, const nb::bytes& hash_key, std::int32_t log_bytes,
               std::uint64_t seed, bool floor, bool session_admission, bool fair_share, bool retention,
               bool tiers, std::int32_t floor_mtps, const Prices& cost, bool cost_exact,
               std::int32_t host_blocks, std::int32_t disk_blocks, std::int32_t sessions_max,
               std::int32_t door_max, std::int32_t session_tokens, std::uint64_t session_aging_us,
               std::uint64_t session_idle_us, bool journal, bool stamps,
               std::int32_t copies_per_step_max, std::uint64_t copy_late_us) {
                new (self) Options{.blocks_total = blocks_total,
                                   .block_tokens = block_tokens,
                                   .slots_max = slots_max,
                                   .tokens_per_step_max = tokens_per_step_max,
                                   .rows_per_step_max = rows_per_step_max,
                                   .prefill_tokens_max = prefill_tokens_max,
                                   .waiting_max = waiting_max,
                                   .context_tokens_max = context_tokens_max,
                                   .prefix_cache = prefix_cache,
                                   .overlap = overlap,
                                   .hash_key = key_of(hash_key),
                                   .log_bytes = log_bytes,
                                   .journal = journal,
                                   .seed = seed,
                                   .floor = floor,
                                   .session_admission = session_admission,
                                   .fair_share = fair_share,
                                   .retention = retention,
                                   .tiers = tiers,
                                   .floor_mtps = floor_mtps,
                                   .cost = {cost[0], cost[1], cost[2], cost[3], cost[4]},
                                   .cost_exact = cost_exact,
                                   .host_blocks = host_blocks,
                                   .disk_blocks = disk_blocks,
                                   .stamps = stamps,
                                   .copies_per_step_max = copies_per_step_max,
                                   .copy_late_us = copy_late_us,
                                   .sessions_max = sessions_max,
                                   .door_max = door_max,
                                   .session_tokens = session_tokens,
                                   .session_aging_us = session_aging_us,
                                   .session_idle_us = session_idle_us};
            },
            nb::kw_only(), "blocks_total"_a, "block_tokens"_a, "slots_max"_a, "tokens_per_step_max"_a,
            "rows_per_step_max"_a, "prefill_tokens_max"_a, "waiting_max"_a, "context_tokens_max"_a,
            "prefix_cache"_a = true, "overlap"_a = false,
            "hash_key"_a = nb::bytes("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16), "log_bytes"_a = 1 << 20,
            "seed"_a = 0, "floor"_a = false, "session_admission"_a = false, "fair_share"_a = false,
            "retention"_a = false, "tiers"_a = false, "floor_mtps"_a = 0, "cost"_a = nb::make_tuple(0.0, 0.0, 0.0, 0.0, 0.0),
            "cost_exact"_a = false, "host_blocks"_a = 0, "disk_blocks"_a = 0, "sessions_max"_a = Options{}.sessions_max,
            "door_max"_a = Options{}.door_max, "session_tokens"_a = 0,
            "session_aging_us"_a = Options{}.session_aging_us, "session_idle_us"_a = Options{}.session_idle_us,
            "journal"_a = false, "stamps"_a = false, "copies_per_step_max"_a = Options{}.copies_per_step_max,
            "copy_late_us"_a = Options{}.copy_late_us)
        .def_ro("blocks_total", &Options::blocks_total)
        .def_ro("block_tokens", &Options::block_tokens)
        .def_ro("slots_max", &Options::slots_max)
        .def_ro("tokens_per_step_max", &Options::tokens_per_step_max)
        .def_ro("rows_per_step_max", &Options::rows_per_step_max)
        .def_ro("prefill_tokens_max", &Options::prefill_tokens_max)
        .def_ro("waiting_max", &Options::waiting_max)
        .def_ro("context_tokens_max", &Options::context_tokens_max)
        .def_ro("prefix_cache", &Options::prefix_cache)
        .def_ro("overlap", &Options::overlap)
        .def_ro("log_bytes", &Options::log_bytes)
        .def_ro("journal", &Options::journal)
        .def_prop_ro("text", &Options::text, "Lines of name=value, as a journal begins with; without the key.")
        .def_ro("seed", &Options::seed)
        .def_ro("floor", &Options::floor)
        .def_ro("session_admission", &Options::session_admission)
        .def_ro("fair_share", &Options::fair_share)
        .def_ro("retention", &Options::retention)
        .def_ro("tiers", &Options::tiers)
        .def_ro("floor_mtps", &Options::floor_mtps)
        .def_prop_ro("cost",
                     [](const Options& o) {
                         return Prices{o.cost.base_us, o.cost.row_us, o.cost.context_us, o.cost.token_us,
                                       o.cost.pair_us};
                     },
                     "Prices in us: a step, a decode row, a token of KV read, a prefill token, a pair (Plan.work).")
        .def_ro("cost_exact", &Options::cost_exact)
        .def_ro("host_blocks", &Options::host_blocks)
        .def_ro("disk_blocks", &Options::disk_blocks)
        .def_ro("stamps", &Options::stamps)
        .def_ro("copies_per_step_max", &Options::copies_per_step_max)
        .def_ro("copy_late_us", &Options::copy_late_us)
        .def_ro("sessions_max", &Options::sessions_max)
        .def_ro("door_max", &Options::door_max)
        .def_ro("session_tokens", &Options::session_tokens)
        .def_ro("session_aging_us", &Options::session_aging_us)
        .def_ro("session_idle_us", &Options::session_idle_us)
        .def_prop_ro("steps_in_flight_max", &Options::steps_in_flight_max)
        .def_prop_ro("deltas_per_step_max", &Options::deltas_per_step_max)
        .def_prop_ro("blocks_per_context", &Options::blocks_per_context);
}

template <std::size_t kArray, auto kList>
void def_array(nb::class_<PlanView>& cls, const char* name, const char* sig, const char* doc) {
    cls.def_prop_ro(name, &plan_array<kArray, kList>, nb::for_getter(nb::sig(sig)), doc);
}

void bind_plan(nb::module_& m) {
    nb::class_<PlanView> plan(
        m, "Plan",
        "One step, as arrays over R rows, T tokens, D deltas, A bound requests. Valid until its commit.");
    plan.def_ro("step", &PlanView::step)
        .def_ro("rows", &PlanView::rows)
        .def_ro("decode_rows", &PlanView::decode_rows, "Rows of one token each that come first.")
        .def_ro("samples", &PlanView::samples, "Rows that yield a token: the size of the result.")
        .def_prop_ro(
            "work",
            [](const PlanView& view) {
                return std::tuple(view.work.decode_rows, view.work.context_tokens, view.work.prefill_tokens,
                                  view.work.prefill_pairs);
            },
            "What the step has to do: decode rows, tokens of KV they read, prefill tokens, pairs of a prefill "
            "token and one it attends to. SchedulerOptions.cost prices them.");
#define TS_ARRAY(index, name, type, doc)             \
    def_array<index, &PlanBuffer::name>(plan, #name, \
                                        "def " #name "(self) -> numpy.typing.NDArray[numpy." type "]", doc)
    TS_ARRAY(0, request_ids, "uint64", "[R] the request of each row");
    TS_ARRAY(1, slots, "int32", "[R] its slot");
    TS_ARRAY(2, starts, "int32", "[R] position of its first new token: the context already in KV");
    TS_ARRAY(3, lengths, "int32", "[R] its new tokens");
    TS_ARRAY(4, sampled, "uint8", "[R] 1 where the row yields a token");
    TS_ARRAY(5, tokens, "int32",
             "[T] token ids, row after row; -1 is the slot's last sampled token, still in flight");
    TS_ARRAY(6, table_slots, "int32", "[D] deltas, in order: table[slot, index] = block");
    TS_ARRAY(7, table_indexes, "int32", "[D]");
    TS_ARRAY(8, table_blocks, "int32", "[D]");
    TS_ARRAY(9, bound_slots, "int32", "[A] slots that get another request with this plan");
    TS_ARRAY(10, bound_request_ids, "uint64", "[A] the requests they get");
    TS_ARRAY(11, cached_tokens, "int32", "[A] tokens of each found in the prefix tree");
    TS_ARRAY(12, group_rows, "int32", "[M] decode rows that share leading blocks, group after group");
    TS_ARRAY(13, group_sizes, "int32", "[G] rows of each group");
    TS_ARRAY(14, group_blocks, "int32", "[G] leading blocks the rows of each group have in common");
    TS_ARRAY(15, copy_ids, "uint64", "[C] copies between tiers, to be made beside the step and reported by these");
    TS_ARRAY(16, copy_from_tiers, "uint8", "[C] Tier each comes from");
    TS_ARRAY(17, copy_to_tiers, "uint8", "[C] Tier each goes to");
    TS_ARRAY(18, copy_from, "int32", "[C] block of the one tier");
    TS_ARRAY(19, copy_to, "int32", "[C] block of the other");
    TS_ARRAY(20, copy_hashes, "uint64", "[4 C] two words of its hash, two of that of the block before it");
    TS_ARRAY(21, frozen_blocks, "int32", "[F] blocks that will not be written again (options.stamps)");
    TS_ARRAY(22, frozen_names, "uint64", "[F] what each is found by");
    TS_ARRAY(23, cached_names, "uint64", "[U] what the cached blocks of bound requests are found by, in order");
    TS_ARRAY(24, miss_reasons, "uint8", "[A] MissReason: why no more of each was found; from cached_tokens on");
#undef TS_ARRAY
}

void bind_outcome(nb::module_& m) {
    nb::class_<OutcomeView>(m, "Outcome", "What a commit told: K rows of (request, token, finish).")
        .def_prop_ro(
            "request_ids", [](const OutcomeView& o) { return o.request_ids; },
            nb::for_getter(nb::sig("def request_ids(self) -> numpy.typing.NDArray[numpy.uint64]")), "[K]")
        .def_prop_ro(
            "tokens", [](const OutcomeView& o) { return o.tokens; },
            nb::for_getter(nb::sig("def tokens(self) -> numpy.typing.NDArray[numpy.int32]")),
            "[K] the token to emit, -1 for none")
        .def_prop_ro(
            "finish", [](const OutcomeView& o) { return o.finish; },
            nb::for_getter(nb::sig("def finish(self) -> numpy.typing.NDArray[numpy.uint8]")),
            "[K] Finish values");
}

void bind_values(nb::module_& m) {
    nb::enum_<SubmitStatus>(m, "SubmitStatus", "What became of a submission.")
        .value("ACCEPTED", SubmitStatus::accepted)
        .value("QUEUE_FULL", SubmitStatus::queue_full, "try later")
        .value("TOO_LONG", SubmitStatus::too_long, "prompt and output exceed context_tokens_max")
        .value("EXCEEDS_POOL", SubmitStatus::exceeds_pool, "would not fit with the whole pool to itself")
        .value("DUPLICATE", SubmitStatus::duplicate, "a live request has this id")
        .value("EMPTY", SubmitStatus::empty, "no prompt token, or no token to produce")
        .value("DOOR_FULL", SubmitStatus::door_full,
               "its session is not admitted, and as many wait for that as may: try later");
    nb::enum_<FinishReason>(m, "Finish", nb::is_arithmetic(), "How a request ended; NONE while it runs.")
        .value("NONE", FinishReason::none)
        .value("STOP", FinishReason::stop)
        .value("LENGTH", FinishReason::length)
        .value("CANCELLED", FinishReason::cancelled)
        .value("ERROR", FinishReason::error)
        .value("DEADLINE", FinishReason::deadline, "it had not begun by its deadline");
    nb::enum_<IdleClass>(m, "IdleClass", "What a session waits for after a turn.")
        .value("UNKNOWN", IdleClass::unknown)
        .value("TOOL", IdleClass::tool)
        .value("TURN", IdleClass::turn);
    nb::enum_<Reason>(m, "Reason", nb::is_arithmetic(), "Why a decision was taken; in the event log.")
        .value("NONE", Reason::none)
        .value("QUEUE_FULL", Reason::queue_full)
        .value("DOOR_FULL", Reason::door_full)
        .value("NO_SLOT", Reason::no_slot)
        .value("NO_BLOCKS", Reason::no_blocks)
        .value("NO_ROOM", Reason::no_room)
        .value("FLOOR_FULL", Reason::floor_full)
        .value("AT_DOOR", Reason::at_door)
        .value("LEAST_SLACK", Reason::least_slack)
        .value("RETRACTED", Reason::retracted)
        .value("DEADLINE_PASSED", Reason::deadline_passed)
        .value("FLOOR_UNREACHABLE", Reason::floor_unreachable)
        .value("SESSION_ADMITTED", Reason::session_admitted)
        .value("SESSION_AGED", Reason::session_aged)
        .value("SESSION_FINAL", Reason::session_final)
        .value("SESSION_CLOSED", Reason::session_closed)
        .value("SESSION_IDLE", Reason::session_idle)
        .value("SESSION_SPARED", Reason::session_spared)
        .value("FETCHED", Reason::fetched)
        .value("FETCH_LATE", Reason::fetch_late)
        .value("QUARANTINED", Reason::quarantined);
    nb::enum_<TierKind>(m, "Tier", nb::is_arithmetic(), "Where KV is.")
        .value("DEVICE", TierKind::device)
        .value("HOST", TierKind::host)
        .value("DISK", TierKind::disk);
    nb::enum_<CopyResult>(m, "CopyResult", nb::is_arithmetic(), "What became of a copy between tiers.")
        .value("FAILED", CopyResult::failed, "nothing is known of the target; the source is as it was")
        .value("DONE", CopyResult::done)
        .value("CORRUPT", CopyResult::corrupt, "the source does not hold what was stored");
    nb::enum_<MissReason>(m, "MissReason", nb::is_arithmetic(), "Why a prompt was not found further.")
        .value("NONE", MissReason::none)
        .value("NEW", MissReason::fresh, "nobody of this session has said it before")
        .value("REWRITTEN", MissReason::rewritten, "it differs from what the session said there")
        .value("VOLATILE_LINE", MissReason::volatile_line, "it differs where it differed the last time")
        .value("EVICTED", MissReason::evicted, "it was computed once, and had to give way");
    nb::class_<TierStats>(m, "TierStats", "Blocks of a lower tier, by what they are.")
        .def_ro("blocks_total", &TierStats::blocks_total)
        .def_ro("blocks_free", &TierStats::blocks_free)
        .def_ro("blocks_held", &TierStats::blocks_held)
        .def_ro("blocks_in_flight", &TierStats::blocks_in_flight)
        .def_ro("blocks_quarantined", &TierStats::blocks_quarantined)
        .def_ro("evictions", &TierStats::evictions);
    nb::class_<Stats> stats(m, "Stats", "Counts of this moment, and totals since the start.");
    stats.def_ro("waiting", &Stats::waiting)
        .def_ro("prefilling", &Stats::prefilling)
        .def_ro("decoding", &Stats::decoding)
        .def_prop_ro("running", [](const Stats& s) { return s.prefilling + s.decoding; })
        .def_ro("blocks_total", &Stats::blocks_total)
        .def_ro("blocks_free", &Stats::blocks_free)
        .def_ro("blocks_leased", &Stats::blocks_leased)
        .def_ro("blocks_frozen", &Stats::blocks_frozen)
        .def_ro("blocks_in_flight", &Stats::blocks_in_flight)
        .def_ro("blocks_evictable", &Stats::blocks_evictable)
        .def_ro("slots_free", &Stats::slots_free)
        .def_ro("steps_in_flight", &Stats::steps_in_flight)
        .def_ro("evictions", &Stats::evictions)
        .def_ro("blocks_quarantined", &Stats::blocks_quarantined)
        .def_ro("host", &Stats::host)
        .def_ro("disk", &Stats::disk)
        .def_ro("transfers", &Stats::transfers, "Ways between tiers with copies that are not all reported.")
        .def_prop_ro("blocks_demoted", [](const Stats& s) { return s.moved.blocks_demoted; })
        .def_prop_ro("blocks_promoted", [](const Stats& s) { return s.moved.blocks_promoted; })
        .def_prop_ro("copies_failed", [](const Stats& s) { return s.moved.copies_failed; })
        .def_prop_ro("copies_corrupt", [](const Stats& s) { return s.moved.copies_corrupt; })
        .def_prop_ro("fetches_late", [](const Stats& s) { return s.moved.fetches_late; })
        .def_ro("at_door", &Stats::at_door)
        .def_ro("sessions_admitted", &Stats::sessions_admitted)
        .def_ro("blocks_charged", &Stats::blocks_charged)
        .def_ro("blocks_budget", &Stats::blocks_budget);
#define TS_COUNTER(name) stats.def_prop_ro(#name, [](const Stats& s) { return s.counters.name; })
    TS_COUNTER(accepted);
    TS_COUNTER(finished);
    TS_COUNTER(steps);
    TS_COUNTER(rows);
    TS_COUNTER(tokens_computed);
    TS_COUNTER(tokens_sampled);
    TS_COUNTER(tokens_queried);
    TS_COUNTER(tokens_hit);
    TS_COUNTER(retractions);
    TS_COUNTER(blocks_deduplicated);
    TS_COUNTER(results_late);
    TS_COUNTER(blocks_corrupt);
    TS_COUNTER(scrubs);
    TS_COUNTER(queue_us);
    TS_COUNTER(device_ns);
    TS_COUNTER(deadlines_passed);
#undef TS_COUNTER
}

template <class Owner>
void bind_account(nb::class_<Owner>& cls) {
#define TS_USED(name, doc) cls.def_prop_ro(#name, [](const Owner& o) { return o.account.name; }, doc)
    TS_USED(prefill_ns, "Device time of its chunks of prompts.");
    TS_USED(decode_ns, "Device time of its output tokens.");
    TS_USED(queue_us, "From arrival to the first step, over its requests.");
    TS_USED(requests, "Accepted.");
    TS_USED(tokens_prompt, "Known tokens of its requests, each time one was admitted.");
    TS_USED(tokens_cached, "Of these, found in the prefix tree.");
    TS_USED(tokens_computed, "Prompt tokens computed.");
    TS_USED(tokens_output, "Sampled.");
    TS_USED(block_us, "Blocks held, times how long: on the device, the host and the disk.");
#undef TS_USED
}

void bind_accounts(nb::module_& m) {
    nb::class_<Session> session(m, "Session", "What is known of a session, and what it has used; a copy.");
    session.def_prop_ro("admitted", [](const Session& s) { return s.admitted; }, "Of a root: its family may run.")
        .def_prop_ro("requests_live", [](const Session& s) { return s.requests_live; })
        .def_prop_ro("blocks", [](const Session& s) { return s.blocks; }, "Of its latest context.");
    bind_account(session);
    nb::class_<Tenant> tenant(m, "Tenant", "What a tenant has used; a copy.");
    tenant.def_prop_ro("id", [](const Tenant& t) { return t.id.value; })
        .def_ro("requests_live", &Tenant::requests_live);
    bind_account(tenant);
}

void bind_scheduler(nb::module_& m) {
    nb::class_<PyScheduler>(m, "Scheduler",
                            "The control plane: requests and blocks in, plans and outcomes out.")
        .def(nb::init<const Options&>(), "options"_a)
        .def("submit", &PyScheduler::submit, "request_id"_a, "tokens"_a, nb::kw_only(), "tokens_max"_a,
             "tokens_min"_a = 0, "stop_ids"_a, "salt"_a = nb::bytes("", 0), "priority"_a = 0, "now_us"_a,
             "session"_a = 0, "root"_a = 0, "tenant"_a = 0, "floor_mtps"_a = 0, "deadline_us"_a = 0,
             "final"_a = false, "retain_us"_a = 0,
             "Offer a request; the answer is a value, never an exception. 0 says nothing: no session, no tenant, "
             "the floor of the options, no deadline.")
        .def("cancel", &PyScheduler::cancel, "request_id"_a,
             "End a request at any moment; False where it has ended already or never was.")
        .def("plan", &PyScheduler::plan, "now_us"_a, nb::sig("def plan(self, now_us: int) -> Plan | None"),
             "The next step to launch; None where nothing can run now.")
        .def("commit", &PyScheduler::commit, "step"_a, "tokens"_a, "now_us"_a = 0, "step_us"_a = 0,
             "Take the result of the oldest step in flight; a late or duplicated one changes nothing. now_us: when "
             "it was there; step_us: what the step took on the device; 0: unknown.")
        .def("idle_session", &PyScheduler::idle_session, "session"_a, "idle"_a, nb::kw_only(),
             "gap_key"_a = 0, "now_us"_a,
             "A turn of a session has ended; gap_key names what its next waits for, 0 nothing.")
        .def("close_session", &PyScheduler::close_session, "session"_a, "now_us"_a,
             "No further request of a session will come.")
        .def("transferred", &PyScheduler::transferred, "copy_ids"_a, "results"_a, "now_us"_a,
             "What became of copies (CopyResult each); in any order, at any time, once or more.")
        .def("corrupt", &PyScheduler::corrupt, "blocks"_a, "now_us"_a,
             "These blocks of the device do not hold what was stored; before the commit of the step that found it.")
        .def("adopt", &PyScheduler::adopt, "tier"_a, "blocks"_a, "hashes"_a, "parents"_a,
             "Blocks that a tier has held since before this scheduler; how many could be placed.")
        .def("drain", &PyScheduler::drain, "Requests that were cancelled since the last commit or drain.")
        .def("tokens", &PyScheduler::tokens, "request_id"_a,
             nb::sig("def tokens(self, request_id: int) -> numpy.typing.NDArray[numpy.int32]"),
             "Prompt and output of a live request, copied; empty for any other.")
        .def("flush_prefix", &PyScheduler::flush_prefix, "Drop every cached block that no request uses.")
        .def("session", &PyScheduler::session, "session"_a, "A session by its id; None where it is not remembered.")
        .def("tenants", &PyScheduler::tenants, "Every tenant that has sent a request; the first is that of no name.")
        .def("retry_after_us", &PyScheduler::retry_after_us,
             "After how long a request that would be refused now may be admitted.")
        .def_prop_ro("prices", &PyScheduler::prices, "The cost model's prices now, as SchedulerOptions.cost.")
        .def_prop_ro("step_error_p99", &PyScheduler::step_error,
                     "What all but one step in a hundred stay below, of |taken / predicted - 1|.")
        .def_prop_ro("idle", &PyScheduler::idle, "Nothing waits, runs or is in flight.")
        .def_prop_ro("options", &PyScheduler::options)
        .def("stats", &PyScheduler::stats)
        .def("check", &PyScheduler::check, "Assert the invariants I1-I10; raises InvariantError.")
        .def("log", &PyScheduler::log, "The event log: its last events, as bytes.")
        .def("take_journal", &PyScheduler::take_journal, nb::sig("def take_journal(self) -> tuple[bytes, int]"),
             "Records of the journal since the last call, and how many there were before; options.journal keeps one.");
}

}  // namespace
}  // namespace tokenspeed

NB_MODULE(_control, m) {
    using namespace tokenspeed;
    m.doc() = "The C++ control plane.";
#ifdef TOKENSPEED_PLANTS
    m.def("plant", [](int number) { plant_in_effect = static_cast<Plant>(number); }, "number"_a);
#endif
    nb::exception<Failure>(m, "InvariantError", PyExc_RuntimeError);
    bind_options(m);
    bind_values(m);
    bind_plan(m);
    bind_outcome(m);
    bind_accounts(m);
    bind_scheduler(m);
}
