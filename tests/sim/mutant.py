# SPDX-License-Identifier: MIT
"""Run seeds against a control plane with a planted bug, in a process of its own: a mutant may do anything.

    python tests/sim/mutant.py EXTENSION PLANT SEEDS {audited,unaudited}

In: the extension built with TOKENSPEED_PLANTS, the number of a plant (0: the product), how many seeds, and
whether the control plane's own assertions are run after every call. Out: one line of JSON: how many seeds
ran, and the law and message of the failure, or null.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType


def load(extension: str) -> ModuleType:
    """The mutant, in the extension's place."""
    name = "tokenspeed.control._control"
    spec = importlib.util.spec_from_file_location(name, extension)
    assert spec is not None
    assert spec.loader is not None
    control = importlib.util.module_from_spec(spec)
    sys.modules[name] = control
    spec.loader.exec_module(control)
    return control


def main(extension: str, plant: int, seeds: int, *, audited: bool) -> None:
    control = load(extension)
    control.plant(plant)
    if not audited:
        control.Scheduler.check = lambda scheduler: None

    from tokenspeed.sim.search import Cut, quiet, run_span  # only now: it imports the extension

    quiet()
    tally = run_span(0, seeds, Cut())
    failed = tally.failures[0] if tally.failures else None
    law, message = (failed.law, failed.message) if failed else (None, None)
    print(json.dumps({"seeds": tally.seeds, "law": law, "message": message}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), audited=sys.argv[4] == "audited")
