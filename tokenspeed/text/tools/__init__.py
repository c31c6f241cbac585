# SPDX-License-Identifier: MIT
"""Dialects: how a family of models writes reasoning and tool calls, and the one incremental parser of all.

`spec` is the vocabulary, `families` the table of dialects as data; nothing else names a family. `recognise`
chooses one for a checkpoint by what its template writes. `parser` turns text into events by a dialect, over
`tape` (text as it comes) and `calls` (one call); `json_text` and `schema` say where JSON ends and which type an
argument has; `ids` reads and makes ids; `render` is the parser's inverse. A new dialect is a new entry of the
table and its transcripts.
"""
