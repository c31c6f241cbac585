# SPDX-License-Identifier: MIT
"""The text plane: everything between characters and token ids, in both directions; knows no tensor and no
socket.

`plane.TextPlane` bundles what belongs to one model directory. On the way in: `chat_template` (messages to
text) and `tokenizer` (text to ids). On the way out: `output.OutputReader` runs `detokenise`, `stop` and the
dialect's parser in `tools` over generated ids and yields `events`. Nothing here imports torch or
transformers.
"""
