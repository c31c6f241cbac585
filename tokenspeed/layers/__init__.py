# SPDX-License-Identifier: MIT
"""Layers: what models are made of. Each declares its weights and placements and binds its kernels when it is built."""
