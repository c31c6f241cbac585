# SPDX-License-Identifier: MIT
"""Local SPMD: a model is written for one device; its communication is compiled from placement annotations."""
