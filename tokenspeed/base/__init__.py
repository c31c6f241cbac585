# SPDX-License-Identifier: MIT
"""The lowest floor: configuration, errors, clocks, logging. Imports nothing of the project and nothing heavy."""
