# SPDX-License-Identifier: MIT
"""The simulator: the real control plane and the real loop over a seeded executor that has no device.

    workload -> mailbox -> engine.loop -> control (C++) -> witness -> SimExecutor -> oracle

A seed is a whole world: its pool, budgets, clients and accidents. Equal seeds give equal runs, bit for bit.
Imports no torch. What is checked and why it suffices: docs/concepts/simulation.md.
"""
