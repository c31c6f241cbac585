# SPDX-License-Identifier: MIT
"""Selection as text: what `tokenspeed explain OP` prints, and the support table of docs/reference/kernels.md.

In: ops, choices, a registry. Out: strings. It decides nothing: every word comes from the declarations that
`select` judged.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import Traits, TraitValue, show
from tokenspeed.kernels.registry import Registry
from tokenspeed.kernels.select import Choice, Overrides, select
from tokenspeed.kernels.spec import Kernel, Op


def explain(
    registry: Registry, name: str, device: Device, overrides: Overrides, texts: Iterable[str] = ()
) -> str:
    """Say how an op's kernel is chosen on a device.

    `texts` are `trait=value`; traits not given take their default or the first value of their test grid, and
    are marked. Raises SetupError for an unknown op, trait or value, and for an override that cannot be
    obeyed.
    """
    op = registry.op(name)
    given = parse_traits(op, texts)
    assumed = {
        t.name: t.grid[0] if t.default is None else t.default for t in op.traits if t.name not in given
    }
    choice = select(registry, name, {**assumed, **given}, device, overrides.of(name))
    traits = ", ".join(f"{k}={show(v)}{'' if k in given else ' (assumed)'}" for k, v in choice.traits.items())
    return "\n".join(
        (
            *describe_op(op),
            "",
            f"device  {device}",
            f"traits  {traits}",
            "",
            describe_choice(choice),
        )
    )


def describe_op(op: Op) -> list[str]:
    """Print an op's signature and shapes, wrapped."""
    about = [
        ("", op.summary),
        ("call: ", op.shapes),
        ("prepare: ", op.prepare_shapes),
        ("source: ", op.source),
    ]
    lines = [f"{op.name}{op.signature}"]
    for name, text in about:
        lines += textwrap.wrap(
            name + text if text else "", 108, initial_indent="  ", subsequent_indent="    "
        )
    return lines


def describe_choice(choice: Choice) -> str:
    """Print a choice as a table: the chosen kernel first, then every other one with all its reasons."""
    rows = [("*", *_cells(choice.kernel), f"chosen: {choice.reason}")]
    for refusal in choice.refusals:
        rows.append(("", *_cells(refusal.kernel), refusal.reasons[0]))
        rows.extend(("", "", "", "", reason) for reason in refusal.reasons[1:])
    return table(("", "kernel", "band", "from", "why"), rows)


def _cells(kernel: Kernel) -> tuple[str, str, str]:
    return kernel.name, kernel.band.name, kernel.source


def parse_traits(op: Op, texts: Iterable[str]) -> Traits:
    """Read `trait=value` texts in the types of an op's schema. Raises SetupError naming what would work."""
    known = {trait.name: trait for trait in op.traits}
    traits: dict[str, TraitValue] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name not in known:
            raise SetupError(
                f"{op.name}: a trait reads name=value, names are {', '.join(known)}; got {text!r}"
            )
        trait = known[name]
        legal = {show(choice): choice for choice in (*trait.choices, *trait.grid)}
        if isinstance(trait.grid[0], int) and not isinstance(trait.grid[0], bool) and value.isdecimal():
            traits[name] = int(value)
        elif value in legal:
            traits[name] = legal[value]
        else:
            raise SetupError(f"{op.name}: {name} is one of {', '.join(legal)}; got {value!r}")
    return traits


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay cells out in left-aligned columns, two spaces apart, no trailing spaces."""
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def reference_page(registry: Registry) -> str:
    """Write docs/reference/kernels.md: every op with signature, shapes, traits, tolerances and kernels."""
    return "\n".join((PREFACE, *(_section(op, registry.kernels(op.name)) for op in registry.ops())))


PREFACE = """# Kernels

Generated from the declarations by `python -m tokenspeed.kernels > docs/reference/kernels.md`; a test keeps it
true.

A layer calls `bind(op, device, **traits)` once, when it is built; the kernel of the highest band whose needs
hold is taken. `ref` is plain torch and needs nothing. `tokenspeed explain OP [trait=value ...]` says what is
chosen on this machine and why. An operator may insist with `--kernel OP=KERNEL`; needs are obeyed even so.
How to add kernels from another distribution: [kernel plugins](../guides/kernel-plugins.md).

Letters: T tokens, R rows, H query heads, K kv heads, D head dim, L latent, N blocks, P tokens per block, V
vocab, E experts, F ffn. A tolerance bounds the error against the reference computed in float64: absolute +
relative * value.
"""


def _section(op: Op, kernels: Iterable[Kernel]) -> str:
    traits = [(f"`{t.name}`", t.meaning, "" if t.default is None else show(t.default)) for t in op.traits]
    bounds = [f"{show(dtype)} {t.absolute:g} + {t.relative:g}" for dtype, t in op.tolerance.items()]
    lines = [f"## {op.name}", "", op.summary, ""]
    if op.prepare_signature:
        lines += [f"- `prepare{op.prepare_signature}`: {op.prepare_shapes}"]
    lines += [f"- `call{op.signature}`: {op.shapes}"]
    lines += [f"- Source: {op.source}"] if op.source else []
    lines += ["", *_markdown(("trait", "meaning", "default"), traits), ""]
    lines += [f"Tolerance: {'; '.join(bounds)}.", ""]
    held = [(f"`{k.name}`", k.band.name, str(k.needs), k.source) for k in kernels]
    return "\n".join((*lines, *_markdown(("kernel", "band", "needs", "from"), held), ""))


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
