# SPDX-License-Identifier: MIT
"""The command line. `main` picks a command and loads that command's module only, so that each starts fast."""
