# SPDX-License-Identifier: MIT
"""Generate the type stubs of the C++ extensions, or check that those in the tree are the generated ones.

python tools/stubs.py            write them
python tools/stubs.py --check    exit 1 with a diff where they differ
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTENSIONS = {
    "tokenspeed.control._control": "tokenspeed/control/_control.pyi",
    "tokenspeed.kernels.cpu._cpu": "tokenspeed/kernels/cpu/_cpu.pyi",
}


def generate(module: str) -> str:
    """The stub of one extension, as nanobind writes it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stub.pyi"
        command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", module, "-o", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
        return "# SPDX-License-Identifier: MIT\n" + out.read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    differs = False
    for module, place in EXTENSIONS.items():
        path, new = ROOT / place, generate(module)
        old = path.read_text() if path.exists() else ""
        if old == new:
            continue
        differs = True
        if check:
            sys.stdout.writelines(
                difflib.unified_diff(old.splitlines(True), new.splitlines(True), place, "generated")
            )
        else:
            path.write_text(new)
            print(f"wrote {place}")
    return int(differs and check)


if __name__ == "__main__":
    sys.exit(main())
