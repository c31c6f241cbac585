# SPDX-License-Identifier: MIT
"""Benchmarks: questions with names, each a module with `main(argv) -> int`, run by `tokenspeed bench NAME`.

They know the ops and the control plane, and are strangers to the engine: what they say of a server they learn
over HTTP.
"""
