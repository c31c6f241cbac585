# SPDX-License-Identifier: MIT
"""What is observed: `metrics` (every exported series, with its unit), `timeline` (recent steps), `sample`."""
