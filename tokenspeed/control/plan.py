# SPDX-License-Identifier: MIT
"""The narrow waist between control and exec: a `Plan` goes down, tokens come back, an `Outcome` goes up.

A `Plan` is one step over R rows, T new tokens, D table deltas, A newly bound requests and G groups:

- `request_ids`, `slots`, `starts`, `lengths`, `sampled` are [R]. The first `decode_rows` rows have one
  token each. Token i of a row has position `starts + i`: `starts` tokens of its context are in KV already.
- `tokens` is [T], row after row. -1 stands for the slot's last sampled token, which is still in flight.
- `table_slots`, `table_indexes`, `table_blocks` are [D]: `table[slot, index] = block`, applied in order,
  before the launch. KV of position p lives in block `table[slot, p // block_tokens]` at offset `p %
  block_tokens`.
- `bound_slots`, `bound_request_ids`, `cached_tokens` are [A]: slots that get another request with this
  plan, and how many tokens of its context were found in the prefix tree.
- `group_rows` [M], `group_sizes` [G], `group_blocks` [G]: decode rows whose tables begin with the same blocks
  (all of them computed before this step), one group after another. A row is in one group at most; a kernel
  may read what a group shares once, or take no notice.

The arrays are views of buffers that the scheduler reuses: a plan is valid until its commit. The result of a
step is one token per row with `sampled`, in row order; a negative one says that the row failed, and its
request ends with `Finish.ERROR`. Results commit in launch order; a late or duplicated result changes
nothing.

An `Outcome` has K rows: `request_ids`, `tokens` (-1: none to emit), `finish` (`Finish`). It owns its
arrays.
"""

from tokenspeed.control._control import Finish, Outcome, Plan

__all__ = ["Finish", "Outcome", "Plan"]
