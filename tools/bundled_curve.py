# SPDX-License-Identifier: MIT
"""Draw the bundled model's loss curve as a small SVG.

In: `log.jsonl` files of `train_bundled.py`, in order of training. Out: an SVG with the training loss and each
validation set's loss per answer token over the tokens trained on. Does no arithmetic beyond a running mean of
the training loss.

    python tools/bundled_curve.py first/log.jsonl second/log.jsonl --out loss.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 300, 40, 30
LOSS_MAX = 4.0
COLOURS = {
    "training": "#999999",
    "code": "#1f77b4",
    "sessions": "#2ca02c",
    "windows": "#9467bd",
    "documented_code": "#ff7f0e",
    "tool_call": "#d62728",
}
MEAN_ROWS = 4

Curve = list[tuple[float, float]]


def curves(logs: list[Path]) -> dict[str, Curve]:
    """Read (millions of tokens, loss) of the training and of each validation set."""
    found: dict[str, Curve] = {name: [] for name in COLOURS}
    before = 0
    for log in logs:
        tokens = before
        recent: list[float] = []
        for row in map(json.loads, log.read_text().splitlines()):
            tokens = before + row.get("tokens", tokens - before)
            if "loss" in row:
                recent = [*recent, row["loss"]][-MEAN_ROWS:]
                found["training"].append((tokens / 1e6, sum(recent) / len(recent)))
            for name, loss in row.get("validation", {}).items():
                if name in found:
                    found[name].append((tokens / 1e6, loss))
        before = tokens
    return found


def draw(found: dict[str, Curve]) -> str:
    """Return the SVG text."""
    tokens_max = max(x for curve in found.values() for x, _ in curve)

    def at(x: float, y: float) -> str:
        across = LEFT + x / tokens_max * (WIDTH - LEFT - 120)
        return f"{across:.1f},{(HEIGHT - BOTTOM) * (1 - min(y, LOSS_MAX) / LOSS_MAX) + 8:.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="11">'
    ]
    lines.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for loss in range(int(LOSS_MAX) + 1):
        x, y = at(0, loss).split(",")
        lines.append(
            f'<path d="M{at(0, loss)} L{at(tokens_max, loss)}" stroke="#dddddd"/>'
            f'<text x="{float(x) - 16}" y="{float(y) + 4}">{loss}</text>'
        )
    for step in range(5):
        million = tokens_max * step / 4
        x, y = at(million, 0).split(",")
        lines.append(f'<text x="{float(x) - 10}" y="{float(y) + 16}">{million:.0f} M</text>')
    for index, (name, curve) in enumerate(found.items()):
        points = " ".join(at(x, y) for x, y in curve)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.3"/>')
        lines.append(
            f'<text x="{WIDTH - 112}" y="{24 + 16 * index}" fill="{COLOURS[name]}">'
            f"{name.replace('_', ' ')}</text>"
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="draw the loss curve")
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(draw(curves(args.logs)))


if __name__ == "__main__":
    main()
