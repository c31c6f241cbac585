# SPDX-License-Identifier: MIT
"""Print the requirements of the named extras of pyproject.toml, one shell word each, for `make`.

A CUDA build of torch brings the triton it was made with; then ours, which only tests of CPU builds need, is
left out.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for extra in sys.argv[1:]:
        for requirement in project["optional-dependencies"][extra]:
            if not (requirement.startswith("triton") and find_spec("triton")):
                print(requirement.replace(" ", ""))


if __name__ == "__main__":
    main()
