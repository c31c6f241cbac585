# SPDX-License-Identifier: MIT
"""Weights: from a directory of safetensors, or from a seed, to the parameters of a model."""

from tokenspeed.weights.load import Loadable, Loaded, Target, load, load_dummy
from tokenspeed.weights.names import NameRules
from tokenspeed.weights.parameter import Fill, Parameter

__all__ = ["Fill", "Loadable", "Loaded", "NameRules", "Parameter", "Target", "load", "load_dummy"]
