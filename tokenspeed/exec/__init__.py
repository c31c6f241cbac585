# SPDX-License-Identifier: MIT
"""The execution plane: carries plans out and decides nothing.

`protocol` is what a step yields and what a loop may ask (no torch); `arena` is the KV memory; `batch` lays
a plan out as tensors; `inflight` is a step under way; `executor` binds, launches and retires.
"""
