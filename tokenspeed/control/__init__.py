# SPDX-License-Identifier: MIT
"""The control plane as Python sees it: which tokens of which requests run in a step, and in which KV blocks.

In: submissions, cancellations, results of steps. Out: `Plan`s for the executor, `Outcome`s for the front.
The work is done in C++ (`csrc/sched`); this package re-exports it and knows no tensors, no text and no
model.

`Scheduler` is a function of its options and events: same events, same decisions, bit for bit. One thread
plans and commits; others may submit, cancel and look meanwhile. `read_log` decodes its event log.
"""

from tokenspeed.control._control import (
    CopyResult,
    Finish,
    IdleClass,
    InvariantError,
    MissReason,
    Outcome,
    Plan,
    Reason,
    Scheduler,
    SchedulerOptions,
    Session,
    Stats,
    SubmitStatus,
    Tenant,
    Tier,
)
from tokenspeed.control.log import Event, EventLog, read_log

__all__ = [
    "CopyResult",
    "Event",
    "EventLog",
    "Finish",
    "IdleClass",
    "InvariantError",
    "MissReason",
    "Outcome",
    "Plan",
    "Reason",
    "Scheduler",
    "SchedulerOptions",
    "Session",
    "Stats",
    "SubmitStatus",
    "Tenant",
    "Tier",
    "read_log",
]
