# SPDX-License-Identifier: MIT
"""The C++ control plane."""

from collections.abc import Sequence
import enum
from typing import Annotated

import numpy
import numpy.typing
from numpy.typing import NDArray


class InvariantError(RuntimeError):
    pass

class SchedulerOptions:
    """Budgets of a scheduler; plain values, read once."""

    def __init__(self, *, blocks_total: int, block_tokens: int, slots_max: int, tokens_per_step_max: int, rows_per_step_max: int, prefill_tokens_max: int, waiting_max: int, context_tokens_max: int, prefix_cache: bool = True, overlap: bool = False, hash_key: bytes = ..., log_bytes: int = 1048576, seed: int = 0, floor: bool = False, session_admission: bool = False, fair_share: bool = False, retention: bool = False, tiers: bool = False, floor_mtps: int = 0, cost: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0), cost_exact: bool = False, host_blocks: int = 0, disk_blocks: int = 0, sessions_max: int = 4096, door_max: int = 1024, session_tokens: int = 0, session_aging_us: int = 600000000, session_idle_us: int = 600000000, journal: bool = False, stamps: bool = False, copies_per_step_max: int = 256, copy_late_us: int = 1000000) -> None: ...

    @property
    def blocks_total(self) -> int: ...

    @property
    def block_tokens(self) -> int: ...

    @property
    def slots_max(self) -> int: ...

    @property
    def tokens_per_step_max(self) -> int: ...

    @property
    def rows_per_step_max(self) -> int: ...

    @property
    def prefill_tokens_max(self) -> int: ...

    @property
    def waiting_max(self) -> int: ...

    @property
    def context_tokens_max(self) -> int: ...

    @property
    def prefix_cache(self) -> bool: ...

    @property
    def overlap(self) -> bool: ...

    @property
    def log_bytes(self) -> int: ...

    @property
    def journal(self) -> bool: ...

    @property
    def text(self) -> str:
        """Lines of name=value, as a journal begins with; without the key."""

    @property
    def seed(self) -> int: ...

    @property
    def floor(self) -> bool: ...

    @property
    def session_admission(self) -> bool: ...

    @property
    def fair_share(self) -> bool: ...

    @property
    def retention(self) -> bool: ...

    @property
    def tiers(self) -> bool: ...

    @property
    def floor_mtps(self) -> int: ...

    @property
    def cost(self) -> list[float]:
        """
        Prices in us: a step, a decode row, a token of KV read, a prefill token, a pair (Plan.work).
        """

    @property
    def cost_exact(self) -> bool: ...

    @property
    def host_blocks(self) -> int: ...

    @property
    def disk_blocks(self) -> int: ...

    @property
    def stamps(self) -> bool: ...

    @property
    def copies_per_step_max(self) -> int: ...

    @property
    def copy_late_us(self) -> int: ...

    @property
    def sessions_max(self) -> int: ...

    @property
    def door_max(self) -> int: ...

    @property
    def session_tokens(self) -> int: ...

    @property
    def session_aging_us(self) -> int: ...

    @property
    def session_idle_us(self) -> int: ...

    @property
    def steps_in_flight_max(self) -> int: ...

    @property
    def deltas_per_step_max(self) -> int: ...

    @property
    def blocks_per_context(self) -> int: ...

class SubmitStatus(enum.Enum):
    """What became of a submission."""

    ACCEPTED = 0

    QUEUE_FULL = 1
    """try later"""

    TOO_LONG = 2
    """prompt and output exceed context_tokens_max"""

    EXCEEDS_POOL = 3
    """would not fit with the whole pool to itself"""

    DUPLICATE = 4
    """a live request has this id"""

    EMPTY = 5
    """no prompt token, or no token to produce"""

    DOOR_FULL = 6
    """
    its session is not admitted, and as many wait for that as may: try later
    """

class Finish(enum.IntEnum):
    """How a request ended; NONE while it runs."""

    NONE = 0

    STOP = 1

    LENGTH = 2

    CANCELLED = 3

    ERROR = 4

    DEADLINE = 5
    """it had not begun by its deadline"""

class IdleClass(enum.Enum):
    """What a session waits for after a turn."""

    UNKNOWN = 0

    TOOL = 1

    TURN = 2

class Reason(enum.IntEnum):
    """Why a decision was taken; in the event log."""

    NONE = 0

    QUEUE_FULL = 1

    DOOR_FULL = 2

    NO_SLOT = 16

    NO_BLOCKS = 17

    NO_ROOM = 18

    FLOOR_FULL = 19

    AT_DOOR = 20

    LEAST_SLACK = 32

    RETRACTED = 48

    DEADLINE_PASSED = 49

    FLOOR_UNREACHABLE = 50

    SESSION_ADMITTED = 64

    SESSION_AGED = 65

    SESSION_FINAL = 66

    SESSION_CLOSED = 67

    SESSION_IDLE = 68

    SESSION_SPARED = 69

    FETCHED = 96

    FETCH_LATE = 97

    QUARANTINED = 98

class Tier(enum.IntEnum):
    """Where KV is."""

    DEVICE = 0

    HOST = 1

    DISK = 2

class CopyResult(enum.IntEnum):
    """What became of a copy between tiers."""

    FAILED = 0
    """nothing is known of the target; the source is as it was"""

    DONE = 1

    CORRUPT = 2
    """the source does not hold what was stored"""

class MissReason(enum.IntEnum):
    """Why a prompt was not found further."""

    NONE = 0

    NEW = 1
    """nobody of this session has said it before"""

    REWRITTEN = 2
    """it differs from what the session said there"""

    VOLATILE_LINE = 3
    """it differs where it differed the last time"""

    EVICTED = 4
    """it was computed once, and had to give way"""

class TierStats:
    """Blocks of a lower tier, by what they are."""

    @property
    def blocks_total(self) -> int: ...

    @property
    def blocks_free(self) -> int: ...

    @property
    def blocks_held(self) -> int: ...

    @property
    def blocks_in_flight(self) -> int: ...

    @property
    def blocks_quarantined(self) -> int: ...

    @property
    def evictions(self) -> int: ...

class Stats:
    """Counts of this moment, and totals since the start."""

    @property
    def waiting(self) -> int: ...

    @property
    def prefilling(self) -> int: ...

    @property
    def decoding(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def blocks_total(self) -> int: ...

    @property
    def blocks_free(self) -> int: ...

    @property
    def blocks_leased(self) -> int: ...

    @property
    def blocks_frozen(self) -> int: ...

    @property
    def blocks_in_flight(self) -> int: ...

    @property
    def blocks_evictable(self) -> int: ...

    @property
    def slots_free(self) -> int: ...

    @property
    def steps_in_flight(self) -> int: ...

    @property
    def evictions(self) -> int: ...

    @property
    def blocks_quarantined(self) -> int: ...

    @property
    def host(self) -> TierStats: ...

    @property
    def disk(self) -> TierStats: ...

    @property
    def transfers(self) -> int:
        """Ways between tiers with copies that are not all reported."""

    @property
    def blocks_demoted(self) -> int: ...

    @property
    def blocks_promoted(self) -> int: ...

    @property
    def copies_failed(self) -> int: ...

    @property
    def copies_corrupt(self) -> int: ...

    @property
    def fetches_late(self) -> int: ...

    @property
    def at_door(self) -> int: ...

    @property
    def sessions_admitted(self) -> int: ...

    @property
    def blocks_charged(self) -> int: ...

    @property
    def blocks_budget(self) -> int: ...

    @property
    def accepted(self) -> int: ...

    @property
    def finished(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def tokens_computed(self) -> int: ...

    @property
    def tokens_sampled(self) -> int: ...

    @property
    def tokens_queried(self) -> int: ...

    @property
    def tokens_hit(self) -> int: ...

    @property
    def retractions(self) -> int: ...

    @property
    def blocks_deduplicated(self) -> int: ...

    @property
    def results_late(self) -> int: ...

    @property
    def blocks_corrupt(self) -> int: ...

    @property
    def scrubs(self) -> int: ...

    @property
    def queue_us(self) -> int: ...

    @property
    def device_ns(self) -> int: ...

    @property
    def deadlines_passed(self) -> int: ...

class Plan:
    """
    One step, as arrays over R rows, T tokens, D deltas, A bound requests. Valid until its commit.
    """

    @property
    def step(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def decode_rows(self) -> int:
        """Rows of one token each that come first."""

    @property
    def samples(self) -> int:
        """Rows that yield a token: the size of the result."""

    @property
    def work(self) -> tuple[int, int, int, int]:
        """
        What the step has to do: decode rows, tokens of KV they read, prefill tokens, pairs of a prefill token and one it attends to. SchedulerOptions.cost prices them.
        """

    @property
    def request_ids(self) -> numpy.typing.NDArray[numpy.uint64]:
        """[R] the request of each row"""

    @property
    def slots(self) -> numpy.typing.NDArray[numpy.int32]:
        """[R] its slot"""

    @property
    def starts(self) -> numpy.typing.NDArray[numpy.int32]:
        """[R] position of its first new token: the context already in KV"""

    @property
    def lengths(self) -> numpy.typing.NDArray[numpy.int32]:
        """[R] its new tokens"""

    @property
    def sampled(self) -> numpy.typing.NDArray[numpy.uint8]:
        """[R] 1 where the row yields a token"""

    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        [T] token ids, row after row; -1 is the slot's last sampled token, still in flight
        """

    @property
    def table_slots(self) -> numpy.typing.NDArray[numpy.int32]:
        """[D] deltas, in order: table[slot, index] = block"""

    @property
    def table_indexes(self) -> numpy.typing.NDArray[numpy.int32]:
        """[D]"""

    @property
    def table_blocks(self) -> numpy.typing.NDArray[numpy.int32]:
        """[D]"""

    @property
    def bound_slots(self) -> numpy.typing.NDArray[numpy.int32]:
        """[A] slots that get another request with this plan"""

    @property
    def bound_request_ids(self) -> numpy.typing.NDArray[numpy.uint64]:
        """[A] the requests they get"""

    @property
    def cached_tokens(self) -> numpy.typing.NDArray[numpy.int32]:
        """[A] tokens of each found in the prefix tree"""

    @property
    def group_rows(self) -> numpy.typing.NDArray[numpy.int32]:
        """[M] decode rows that share leading blocks, group after group"""

    @property
    def group_sizes(self) -> numpy.typing.NDArray[numpy.int32]:
        """[G] rows of each group"""

    @property
    def group_blocks(self) -> numpy.typing.NDArray[numpy.int32]:
        """[G] leading blocks the rows of each group have in common"""

    @property
    def copy_ids(self) -> numpy.typing.NDArray[numpy.uint64]:
        """
        [C] copies between tiers, to be made beside the step and reported by these
        """

    @property
    def copy_from_tiers(self) -> numpy.typing.NDArray[numpy.uint8]:
        """[C] Tier each comes from"""

    @property
    def copy_to_tiers(self) -> numpy.typing.NDArray[numpy.uint8]:
        """[C] Tier each goes to"""

    @property
    def copy_from(self) -> numpy.typing.NDArray[numpy.int32]:
        """[C] block of the one tier"""

    @property
    def copy_to(self) -> numpy.typing.NDArray[numpy.int32]:
        """[C] block of the other"""

    @property
    def copy_hashes(self) -> numpy.typing.NDArray[numpy.uint64]:
        """[4 C] two words of its hash, two of that of the block before it"""

    @property
    def frozen_blocks(self) -> numpy.typing.NDArray[numpy.int32]:
        """[F] blocks that will not be written again (options.stamps)"""

    @property
    def frozen_names(self) -> numpy.typing.NDArray[numpy.uint64]:
        """[F] what each is found by"""

    @property
    def cached_names(self) -> numpy.typing.NDArray[numpy.uint64]:
        """[U] what the cached blocks of bound requests are found by, in order"""

    @property
    def miss_reasons(self) -> numpy.typing.NDArray[numpy.uint8]:
        """[A] MissReason: why no more of each was found; from cached_tokens on"""

class Outcome:
    """What a commit told: K rows of (request, token, finish)."""

    @property
    def request_ids(self) -> numpy.typing.NDArray[numpy.uint64]:
        """[K]"""

    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int32]:
        """[K] the token to emit, -1 for none"""

    @property
    def finish(self) -> numpy.typing.NDArray[numpy.uint8]:
        """[K] Finish values"""

class Session:
    """What is known of a session, and what it has used; a copy."""

    @property
    def admitted(self) -> bool:
        """Of a root: its family may run."""

    @property
    def requests_live(self) -> int: ...

    @property
    def blocks(self) -> int:
        """Of its latest context."""

    @property
    def prefill_ns(self) -> int:
        """Device time of its chunks of prompts."""

    @property
    def decode_ns(self) -> int:
        """Device time of its output tokens."""

    @property
    def queue_us(self) -> int:
        """From arrival to the first step, over its requests."""

    @property
    def requests(self) -> int:
        """Accepted."""

    @property
    def tokens_prompt(self) -> int:
        """Known tokens of its requests, each time one was admitted."""

    @property
    def tokens_cached(self) -> int:
        """Of these, found in the prefix tree."""

    @property
    def tokens_computed(self) -> int:
        """Prompt tokens computed."""

    @property
    def tokens_output(self) -> int:
        """Sampled."""

    @property
    def block_us(self) -> list[int]:
        """Blocks held, times how long: on the device, the host and the disk."""

class Tenant:
    """What a tenant has used; a copy."""

    @property
    def id(self) -> int: ...

    @property
    def requests_live(self) -> int: ...

    @property
    def prefill_ns(self) -> int:
        """Device time of its chunks of prompts."""

    @property
    def decode_ns(self) -> int:
        """Device time of its output tokens."""

    @property
    def queue_us(self) -> int:
        """From arrival to the first step, over its requests."""

    @property
    def requests(self) -> int:
        """Accepted."""

    @property
    def tokens_prompt(self) -> int:
        """Known tokens of its requests, each time one was admitted."""

    @property
    def tokens_cached(self) -> int:
        """Of these, found in the prefix tree."""

    @property
    def tokens_computed(self) -> int:
        """Prompt tokens computed."""

    @property
    def tokens_output(self) -> int:
        """Sampled."""

    @property
    def block_us(self) -> list[int]:
        """Blocks held, times how long: on the device, the host and the disk."""

class Scheduler:
    """The control plane: requests and blocks in, plans and outcomes out."""

    def __init__(self, options: SchedulerOptions) -> None: ...

    def submit(self, request_id: int, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], *, tokens_max: int, tokens_min: int = 0, stop_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], salt: bytes = ..., priority: int = 0, now_us: int, session: int = 0, root: int = 0, tenant: int = 0, floor_mtps: int = 0, deadline_us: int = 0, final: bool = False, retain_us: int = 0) -> SubmitStatus:
        """
        Offer a request; the answer is a value, never an exception. 0 says nothing: no session, no tenant, the floor of the options, no deadline.
        """

    def cancel(self, request_id: int) -> bool:
        """
        End a request at any moment; False where it has ended already or never was.
        """

    def plan(self, now_us: int) -> Plan | None:
        """The next step to launch; None where nothing can run now."""

    def commit(self, step: int, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], now_us: int = 0, step_us: int = 0) -> Outcome:
        """
        Take the result of the oldest step in flight; a late or duplicated one changes nothing. now_us: when it was there; step_us: what the step took on the device; 0: unknown.
        """

    def idle_session(self, session: int, idle: IdleClass, *, gap_key: int = 0, now_us: int) -> None:
        """
        A turn of a session has ended; gap_key names what its next waits for, 0 nothing.
        """

    def close_session(self, session: int, now_us: int) -> None:
        """No further request of a session will come."""

    def transferred(self, copy_ids: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], results: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], now_us: int) -> None:
        """
        What became of copies (CopyResult each); in any order, at any time, once or more.
        """

    def corrupt(self, blocks: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], now_us: int) -> None:
        """
        These blocks of the device do not hold what was stored; before the commit of the step that found it.
        """

    def adopt(self, tier: Tier, blocks: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], hashes: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], parents: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
        """
        Blocks that a tier has held since before this scheduler; how many could be placed.
        """

    def drain(self) -> Outcome:
        """Requests that were cancelled since the last commit or drain."""

    def tokens(self, request_id: int) -> numpy.typing.NDArray[numpy.int32]:
        """Prompt and output of a live request, copied; empty for any other."""

    def flush_prefix(self) -> int:
        """Drop every cached block that no request uses."""

    def session(self, session: int) -> Session | None:
        """A session by its id; None where it is not remembered."""

    def tenants(self) -> list[Tenant]:
        """Every tenant that has sent a request; the first is that of no name."""

    def retry_after_us(self) -> int:
        """After how long a request that would be refused now may be admitted."""

    @property
    def prices(self) -> list[float]:
        """The cost model's prices now, as SchedulerOptions.cost."""

    @property
    def step_error_p99(self) -> float:
        """
        What all but one step in a hundred stay below, of |taken / predicted - 1|.
        """

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is in flight."""

    @property
    def options(self) -> SchedulerOptions: ...

    def stats(self) -> Stats: ...

    def check(self) -> None:
        """Assert the invariants I1-I10; raises InvariantError."""

    def log(self) -> bytes:
        """The event log: its last events, as bytes."""

    def take_journal(self) -> tuple[bytes, int]:
        """
        Records of the journal since the last call, and how many there were before; options.journal keeps one.
        """
