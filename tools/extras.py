# SPDX-License-Identifier: MIT
"""Print the requirements of the named extras of pyproject.toml, one shell word each, for `make`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for extra in sys.argv[1:]:
        for requirement in project["optional-dependencies"][extra]:
            print(requirement.replace(" ", ""))


if __name__ == "__main__":
    main()
