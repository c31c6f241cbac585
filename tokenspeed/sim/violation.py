# SPDX-License-Identifier: MIT
"""The one way a simulation fails: a law was broken, and this says which and how.

`law` is a short name, the same in code, reports and docs (see `LAWS`). A violation is never caught by the
code under test: it ends the seed.
"""

from __future__ import annotations

from typing import Final

LAWS: Final[dict[str, str]] = {
    "I1": "every block is exactly one of free, leased, frozen, in flight",
    "I5": "a plan fits its token, row, slot and block budgets",
    "I6": "no block written by a step is touched by another request before that step retires",
    "I7": "each planned token has one position and one destination, and continues what is really there",
    "I8": "every accepted request finishes exactly once, for the right reason",
    "I9": "results commit in launch order, and a strange result changes nothing",
    "I10": "a runnable request is planned within K steps",
    "I11": "a block that is being copied changes on neither side",
    "memory": "a row reads one whole history of its tenant, and nothing that a failed row of another wrote",
    "tokens": "a request says what it would say alone and uncached",
    "cache": "a reported prefix hit is possible; where nothing is evicted it is complete",
    "admission": "a request is accepted or refused as documented",
    "leak": "when nothing runs nothing is held, and counters add up",
    "check": "the control plane's own assertions (I1-I9)",
    "crash": "nothing raises",
}


class ViolationError(Exception):
    """A broken law; `law` is a key of `LAWS`."""

    def __init__(self, law: str, message: str) -> None:
        assert law in LAWS, law
        super().__init__(f"{law}: {message}")
        self.law = law
