# SPDX-License-Identifier: MIT
"""Ranks: how many there are, what their axes are called, and which of them talk to each other."""

from tokenspeed.dist.mesh import AXES, Mesh

__all__ = ["AXES", "Mesh"]
