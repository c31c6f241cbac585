# SPDX-License-Identifier: MIT
"""The execution plane: carries plans out and decides nothing.

`protocol` is what a step yields and what a loop may ask (no torch); `arena` is the KV memory; `batch` lays
a plan out as tensors; `executor` binds, launches and retires, `null` does so without computing (no torch).
"""
