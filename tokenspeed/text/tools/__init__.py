# SPDX-License-Identifier: MIT
"""Dialects: how a family of models writes reasoning and tool calls, and the one incremental parser of each.

`spec` holds the dialects as data; `parser` turns text into events by a spec; a call format is a module here
(`json_call`) that the spec names. A new dialect is a new spec and, if its calls look like no other's, one
more call format.
"""
