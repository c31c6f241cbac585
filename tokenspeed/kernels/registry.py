# SPDX-License-Identifier: MIT
"""The ops that exist and the kernels that implement them.

In: ops and kernels, one by one, from `load` (or from a test). Out: a registry that answers by name. It
refuses an op without reference, shape generator or tolerance, and a kernel whose op, name or needs are wrong:
registering is where a mistake is cheapest. Adding an op adds its reference as kernel `ref`. It imports no op
and no backend, and after loading nobody changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenspeed.base.errors import SetupError
from tokenspeed.kernels.needs import FACTS, AtLeast, AtMost, Condition, Needs, OneOf
from tokenspeed.kernels.spec import Band, Kernel, Op

REF = "ref"
"""Name of the kernel that every op has."""


class Registry:
    """Ops by name, kernels by op. Invariant: no two kernels of one op and one band can hold at once."""

    __slots__ = ("_kernels", "_ops")

    def __init__(self, ops: Iterable[Op] = (), kernels: Iterable[Kernel] = ()) -> None:
        self._ops: dict[str, Op] = {}
        self._kernels: dict[str, list[Kernel]] = {}
        for op in ops:
            self.add_op(op)
        for kernel in kernels:
            self.add(kernel)

    def add_op(self, op: Op) -> None:
        """Register an op and its reference. Raises SetupError when the op is incomplete or already there."""
        if op.name in self._ops:
            raise SetupError(f"op {op.name!r} is registered twice")
        if fault := op.fault():
            raise SetupError(fault)
        self._ops[op.name] = op
        self._kernels[op.name] = [Kernel(op.name, REF, Needs(), Band.REF, op.reference)]

    def add(self, kernel: Kernel) -> None:
        """Register a kernel. Raises SetupError when its op, name or needs are wrong, or it ties."""
        op = self.op(kernel.op)
        if any(kernel.name == other.name for other in self._kernels[op.name]):
            raise SetupError(f"kernel {kernel.op}={kernel.name} is registered twice")
        known = {trait.name for trait in op.traits} | set(FACTS)
        if unknown := [name for name, _ in kernel.needs if name not in known]:
            raise SetupError(
                f"kernel {kernel.op}={kernel.name} needs {', '.join(unknown)}, no traits of {op.name}. "
                f"It has {', '.join(sorted(known))}"
            )
        for other in self._kernels[op.name]:
            if other.band == kernel.band and may_meet(kernel.needs, other.needs):
                raise SetupError(
                    f"kernels {kernel.op}={kernel.name} and {kernel.op}={other.name} tie: "
                    f"both are {kernel.band.name} and both may hold at once "
                    f"({kernel.needs} | {other.needs}). Narrow the needs of one or give it another band"
                )
        self._kernels[op.name].append(kernel)

    def op(self, name: str) -> Op:
        """Return an op. Raises SetupError, listing what exists, for an unknown name."""
        if name not in self._ops:
            raise SetupError(f"no op named {name!r}; ops are: {', '.join(sorted(self._ops))}")
        return self._ops[name]

    def ops(self) -> Iterator[Op]:
        """Yield the ops in the order of their names."""
        return (self._ops[name] for name in sorted(self._ops))

    def kernels(self, op: str) -> tuple[Kernel, ...]:
        """Return the kernels of an op, best band first, the reference last."""
        return tuple(sorted(self._kernels[self.op(op).name], key=lambda kernel: (-kernel.band, kernel.name)))


def may_meet(one: Needs, other: Needs) -> bool:
    """Say whether a device and traits could satisfy both; false only where the declarations exclude it."""
    shared = ((condition, other.get(name)) for name, condition in one)
    return not any(theirs is not None and _disjoint(ours, theirs) for ours, theirs in shared)


def _disjoint(one: Condition, other: Condition) -> bool:
    match one, other:
        case (OneOf(members), test) | (test, OneOf(members)):
            return not any(test.holds(member) for member in members)
        case (AtLeast(least), AtMost(most)) | (AtMost(most), AtLeast(least)):
            return least > most
        case _:
            return False
