# SPDX-License-Identifier: MIT
"""Layers: what models are made of. Each declares weights and placements, and binds its kernels once."""
