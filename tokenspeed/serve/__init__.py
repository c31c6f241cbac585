# SPDX-License-Identifier: MIT
"""The HTTP front: `app` (routes), `server` (process life), one package per API dialect.

Walk of a request: `auth` -> a dialect's handler (`openai.chat`, `anthropic.messages`, `responses.create`) -> `reading`
(the body through the dialect's `Spelling`, as much of it as the turn ledger does not know) -> a `generation.Choice`
per answer -> `answer.respond` runs the one generation path and writes through the dialect's `Writer`, streamed by
`sse` or whole. Every error becomes the dialect's shape in `errors`.
"""
