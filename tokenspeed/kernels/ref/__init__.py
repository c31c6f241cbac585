# SPDX-License-Identifier: MIT
"""The references: every op in plain torch, slow, on any device, right. They stay for ever beside the fast
kernels.

Math is float32, rounded once at the end; given float64 they compute in float64, which is what kernels are
compared with. `api` makes each of them the kernel `ref` of its op, so whole models run on them:
`kernels.overriding("*=ref")`.
"""
