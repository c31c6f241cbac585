# SPDX-License-Identifier: MIT
"""The Anthropic dialect: messages, and counting their tokens."""
