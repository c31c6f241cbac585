# SPDX-License-Identifier: MIT
"""What a template's source says of itself that no rendering of probes can show.

In: the parsed template, or its text. Out: the words it looks for inside other texts, and the ways it asks for
the time. Nothing is run.
"""

from __future__ import annotations

import re
from typing import Any, Final

from jinja2 import nodes

_LOOKS: Final = frozenset(
    {"startswith", "endswith", "split", "rsplit", "partition", "rpartition", "find", "index", "count"}
)
_FIELD: Final = re.compile(r"\w*\Z")
_CLOCK: Final = re.compile(r"strftime_now\b")
_CLOCK_PATTERN: Final = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


def watched_words(tree: nodes.Template) -> frozenset[str]:
    """Constant texts that a template looks for inside other texts; names of fields are none."""
    found: set[Any] = set()
    for compare in tree.find_all(nodes.Compare):
        contains = any(operand.op in ("in", "notin") for operand in compare.ops)
        if contains and isinstance(compare.expr, nodes.Const):
            found.add(compare.expr.value)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _LOOKS:
            found.update(argument.value for argument in call.args if isinstance(argument, nodes.Const))
    return frozenset(
        word for word in found if isinstance(word, str) and not _FIELD.match(word) and word.strip()
    )


def clock_patterns(source: str) -> tuple[str, ...] | None:
    """The patterns a template asks the time with; None if they are not written out."""
    found = _CLOCK_PATTERN.findall(source)
    defined = source.count("strftime_now is defined")
    return (
        tuple(pattern for _, pattern in found)
        if len(found) + defined == len(_CLOCK.findall(source))
        else None
    )
