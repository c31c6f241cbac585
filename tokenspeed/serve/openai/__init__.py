# SPDX-License-Identifier: MIT
"""The OpenAI dialect: chat completions, completions, tokenize and detokenize, models."""
