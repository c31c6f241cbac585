# SPDX-License-Identifier: MIT
"""Print docs/reference/kernels.md: `python -m tokenspeed.kernels`, plugins left out."""

from __future__ import annotations

from tokenspeed.kernels.explain import reference_page
from tokenspeed.kernels.load import BACKENDS, load

if __name__ == "__main__":
    print(reference_page(load(BACKENDS, ())), end="")
