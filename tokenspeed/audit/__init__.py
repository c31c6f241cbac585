# SPDX-License-Identifier: MIT
"""The auditor: did everybody get the floor that was promised, and where not, why.

In: a journal (`--event-log FILE`). Out: every window that violates its floor, with its cause. Shares no code with
what it judges, not even the reader of the format (docs/reference/event-log.md): imports nothing of the engine.
"""
