# SPDX-License-Identifier: MIT
"""OpenAI's Responses dialect: items in, items out, and the answers that are kept."""
