# SPDX-License-Identifier: MIT
"""The HTTP front: `app` (routes), `server` (process life), one package per API dialect.

Walk of a request: `auth` -> `body` (bytes to a checked struct) -> a dialect's handler (`openai.chat`, say)
makes a `generation.Choice` per answer -> `answer.respond` runs the one generation path and writes through the
dialect's `Writer`, streamed by `sse` or whole. Every error becomes the dialect's shape in `errors`.
"""
