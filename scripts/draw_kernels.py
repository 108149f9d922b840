"""Draws the figures of docs/kernels.md from nothing but what stands here; the same text gives the same bytes.

    python scripts/draw_kernels.py [--to docs/_static] [--format svg]

What they show is what `src/cfm/kernels/cuda/varlen_fwd.cuh` and `varlen_fwd_sm90.cuh` do: a change there belongs here too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

GLOBAL, SHARED, REGISTERS, PRODUCTS, OTHER = "#e3e3e3", "#cfe2f3", "#fce5cd", "#d9ead3", "#ffffff"
A, B = "#f6c99f", "#f3a8a0"
EDGE, INK, FAINT = "#444444", "#111111", "#777777"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "cfm",  # names inside the file are random otherwise
    "path.simplify": False,
}


def canvas(width: float, height: float, scale: float = 10) -> tuple[Figure, Axes]:
    """A white page of so many inches, `scale` units to an inch, y downwards."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width * scale), ylim=(height * scale, 0))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes, x: float, y: float, w: float, h: float, text: str = "", face: str = OTHER, *, size: float = 8,
    bold: bool = False, edge: str = EDGE, dashed: bool = False, top: bool = False,
) -> None:  # fmt: skip
    """A box with text in its middle, or at its top."""
    axes.add_patch(
        Rectangle((x, y), w, h, facecolor=face, edgecolor=edge, linewidth=0.8, linestyle="--" if dashed else "-")
    )
    place = (y + 0.5, "top") if top else (y + h / 2, "center")
    axes.text(x + w / 2, place[0], text, ha="center", va=place[1], size=size, color=INK, linespacing=1.25,
              weight="bold" if bold else "normal")  # fmt: skip


def room(axes: Axes, x: float, y: float, w: float, h: float, title: str, face: str) -> None:
    """A kind of memory, with what it is called above its boxes."""
    axes.add_patch(
        FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.8", facecolor=face, edgecolor="none")
    )
    axes.text(x + w / 2, y + 1.1, title, ha="center", va="top", size=8.5, weight="bold", color=INK, linespacing=1.3)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", *, at: tuple[float, float] | None = None,
    colour: str = EDGE, align: str = "center", dashed: bool = False, size: float = 7.2,
) -> None:  # fmt: skip
    """An arrow, with text at `at` or above its middle."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0,
             "linestyle": "--" if dashed else "-", "mutation_scale": 9}  # fmt: skip
    axes.annotate("", end, start, arrowprops=style)
    if text:
        x, y = at or ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 0.5)
        axes.text(x, y, text, ha=align, va="bottom", size=size, color=INK, linespacing=1.2)


def note(
    axes: Axes, x: float, y: float, text: str, *, size: float = 7.2, align: str = "left", colour: str = INK
) -> None:
    """Text, from its top."""
    axes.text(x, y, text, ha=align, va="top", size=size, color=colour, linespacing=1.3)


def rule() -> Figure:
    """Which keys a query sees, and which tiles are visited for it."""
    figure, axes = canvas(7.2, 3.55)
    tile, known, length, left, top = 5.0, 2.4, 5.3, 6.0, 5.0
    n = 6
    # Tiles that a tile of queries visits: those with known keys, and its own where rows pass the known ones.
    for i in range(n):
        for j in range(n):
            visited = j < 3 or i == j
            axes.add_patch(
                Rectangle((left + j * tile, top + i * tile), tile, tile, facecolor="white", edgecolor="none")
            )
            if visited:
                axes.add_patch(
                    Rectangle((left + j * tile, top + i * tile), tile, tile, facecolor=PRODUCTS, edgecolor="none")
                )
    # What is seen inside: known keys, and the diagonal beyond them.
    seen = "#7fb069"
    axes.add_patch(Rectangle((left, top), known * tile, length * tile, facecolor=seen, edgecolor="none", alpha=0.75))
    axes.plot([left + known * tile, left + length * tile], [top + known * tile, top + length * tile], color="#3f7d20",
              linewidth=2.2, solid_capstyle="butt")  # fmt: skip
    for i in range(n + 1):
        axes.plot([left, left + n * tile], [top + i * tile] * 2, color="#bbbbbb", linewidth=0.5)
        axes.plot([left + i * tile] * 2, [top, top + n * tile], color="#bbbbbb", linewidth=0.5)
    for at, label in ((known, "n_known"), (length, "L")):
        x, y = left + at * tile, top + at * tile
        axes.plot([x, x], [top - 0.8, top + n * tile], color=EDGE, linewidth=0.9, linestyle=":")
        axes.text(x, top - 1.0, label, ha="center", va="bottom", size=8, style="italic")
        if label == "L":
            axes.plot([left, left + n * tile], [y, y], color=EDGE, linewidth=0.9, linestyle=":")
    axes.text(left + 0.3, top - 1.0, "keys j", ha="left", va="bottom", size=8)
    axes.text(left - 1.2, top + n * tile / 2, "queries i", ha="center", va="center", size=8, rotation=90)
    x = left + n * tile + 3
    box(axes, x, 5.6, 2.4, 2.4, face=seen, edge="none")
    note(axes, x + 3.4, 5.7, "what a query sees: j < n_known,\nand j = i (the line)", size=8)
    box(axes, x, 11.6, 2.4, 2.4, face=PRODUCTS)
    note(
        axes, x + 3.4, 11.7, "tiles that are visited. Only in those that\nreach past n_known is a mask applied", size=8
    )
    box(axes, x, 17.6, 2.4, 2.4, face="white")
    note(axes, x + 3.4, 17.7, "tiles that nobody asks for", size=8)
    note(axes, x, 23.2, "Known tokens stand first, so one number for each cell\n"
         "is the whole mask. A plain encoder is the case\nn_known = L.\n\n"
         "Rows past L are computed, and never stored. Keys past L\nare masked, and their values cleared: 0 times NaN is NaN.", size=8)  # fmt: skip
    return figure


def sm80() -> Figure:
    """The forward kernel for mma.sync."""
    figure, axes = canvas(7.6, 5.95)
    room(axes, 1, 1, 14, 43.5, "global\nmemory", GLOBAL)
    room(axes, 25, 1, 20, 43.5, "shared memory of a block\n40 KiB; with 128 rows 48", SHARED)
    room(axes, 52, 1, 23, 43.5, "registers of a warp, one of four\n(16 rows of 64, or 32 of 128)", REGISTERS)

    box(axes, 2.5, 7, 11, 5.2, "Q: 64 or 128\nrows of a head", size=7.5)
    box(axes, 2.5, 17, 11, 4.6, "K of the cell", size=7.5)
    box(axes, 2.5, 24, 11, 4.6, "V of the cell", size=7.5)
    box(axes, 2.5, 36.8, 11, 5.2, "O, and the\nlog-sum-exp", size=7.5)

    box(axes, 27, 7, 16, 5.2, "Q tile", "#b7d2ec")
    box(axes, 27, 16.0, 16, 14.2, "", "#b7d2ec", edge="#7fa8cf")
    for i, y in enumerate((16.8, 23.5)):
        box(axes, 27.8, y, 7.1, 5.9, f"K, 64 rows\nstage {i}", size=7.2)
        box(axes, 35.1, y, 7.1, 5.9, f"V, 64 rows\nstage {i}", size=7.2)
    note(axes, 35, 30.6, "a ring of two stages. One barrier a tile:\nthis stage has come, the other is free", size=6.3,
         align="center")  # fmt: skip
    box(axes, 27, 37, 16, 5.0, "O turned in each warp's\nown rows of the Q tile", "#b7d2ec", size=7.2)

    box(axes, 54, 7, 19, 3.8, "Q as operand A, for good", size=7.5)
    box(axes, 54, 14.2, 19, 4.8, "S = Q K$^T$\nmma.sync m16n8k16", PRODUCTS, size=7.5)
    box(axes, 54, 21.4, 19, 6.4, "mask, row maximum, exp2, sum\nP in the registers of S,\nwhose layout is that of operand A", OTHER,
        size=7.2)  # fmt: skip
    box(axes, 54, 30.2, 19, 4.8, "O += P V\nmma.sync m16n8k16", PRODUCTS, size=7.5)
    box(axes, 54, 38.0, 19, 4.0, "O / sum, in 16 bits", OTHER, size=7.5)

    arrow(axes, (13.5, 9.6), (27, 9.6), "cp.async,\n16 bytes a lane", at=(20, 9.2))
    arrow(axes, (13.5, 19.3), (27, 19.3), "cp.async", at=(20, 18.9))
    arrow(axes, (13.5, 26.3), (27, 26.3), "cp.async; zeros\npast the cell", at=(20, 25.9), size=6.8)
    arrow(axes, (43, 8.9), (54, 8.9), "ldmatrix", at=(48.5, 8.5))
    arrow(axes, (43, 19.4), (54, 16.6), "ldmatrix of K", at=(48.6, 14.7), size=6.8)
    arrow(axes, (43, 27.0), (54, 32.6), "ldmatrix.trans\nof V", at=(48.6, 25.6), size=6.8)
    for start, end in ((10.8, 14.2), (19.0, 21.4), (27.8, 30.2)):
        arrow(axes, (63.5, start), (63.5, end))
    arrow(axes, (63.5, 35.0), (63.5, 38.0), "after the last tile", at=(64.2, 37.1), align="left", size=6.8)
    arrow(axes, (54, 40.0), (43, 40.0), "st.shared", at=(48.6, 39.6))
    note(axes, 48.6, 40.6, "log-sum-exp goes\nstraight out", size=6.4, align="center", colour=FAINT)
    arrow(axes, (27, 39.5), (13.5, 39.5), "16-byte stores,\nrows of the cell", at=(20.2, 39.1), size=6.8)

    note(axes, 1, 46.0, "One step of the loop over tiles of keys", size=8.5)
    y, h = 49.2, 3.4
    for name, at in (("copies", y), ("warps", y + h + 0.5)):
        axes.text(8.2, at + h / 2, name, ha="right", va="center", size=8)
    widths = (("wait,\nbarrier", 7, OTHER), ("start\ncopies", 6, OTHER), ("S = Q K$^T$", 13, PRODUCTS),
              ("maximum, exp2, sum", 15, REGISTERS), ("O += P V", 13, PRODUCTS))  # fmt: skip
    x, begun = 9.0, 0.0
    for text, w, face in widths:
        box(axes, x, y + h + 0.5, w, h, text, face, size=6.8)
        x += w
        if text.startswith("start"):
            begun = x
    box(axes, x, y + h + 0.5, 11.5, h, "wait, barrier ...", OTHER, size=6.8, dashed=True)
    box(axes, begun, y, x - begun, h, "K and V of tile i + 1 travel to the other stage", SHARED, size=7.2)
    note(axes, 9, y + 2 * h + 1.4, "Tile i is computed while tile i + 1 is under way. Tiles that nobody asks for are not in the list.",
         colour=FAINT)  # fmt: skip
    return figure


def sm90() -> Figure:
    """The forward kernel for TMA and wgmma."""
    figure, axes = canvas(7.6, 6.9)
    room(axes, 1, 1, 12, 44.5, "global\nmemory", GLOBAL)
    room(axes, 23, 1, 20, 44.5, "shared memory of a block\n144 KiB and 18 mbarriers", SHARED)
    room(axes, 51, 1, 24, 44.5, "three warpgroups of 128 threads", REGISTERS)

    box(axes, 2.5, 12, 9, 4.5, "Q: 128 rows")
    box(axes, 2.5, 21, 9, 4.5, "K of the cell")
    box(axes, 2.5, 30, 9, 4.5, "V of the cell")
    box(axes, 2.5, 38.5, 9, 4.6, "O, and the\nlog-sum-exp")

    box(axes, 25, 11, 16, 3.4, "Q, rows 0 to 63, for A", A, size=7.2)
    box(axes, 25, 14.4, 16, 3.4, "Q, rows 64 to 127, for B", B, size=7.2)
    for y, name in ((20.4, "K"), (29.4, "V")):
        for i in range(4):
            box(axes, 25 + 4 * i, y, 4, 5.7, f"{name}\n{i}", "#b7d2ec", size=8)
        note(axes, 33, y + 6.0, f"ring of four tiles of 128 rows of {name}\na full and an empty mbarrier each", size=6.4,
             align="center")  # fmt: skip
    box(axes, 25, 38.6, 16, 4.4, "O turned in each warp's\nown rows of the Q tile", "#b7d2ec", size=7)

    box(axes, 53, 4.6, 20, 9.4, "", "#ffffff")
    note(axes, 63, 5.0, "feeds, 24 registers a thread", size=7, align="center")
    box(axes, 54, 7.6, 9, 5.6, "thread 0\nwaits for empty,\nstarts copies", size=6.6)
    box(axes, 63.2, 7.6, 9, 5.6, "warp 1\nclears V past the\nend of the cell", size=6.6)
    for y, name, face, rows in ((16.2, "A", A, "rows 0 to 63"), (31.0, "B", B, "rows 64 to 127")):
        box(axes, 53, y, 20, 13.4, "", face)
        note(axes, 63, y + 0.5, f"{name}: {rows}, 240 registers a thread", size=6.7, align="center")
        box(axes, 54.2, y + 2.8, 17.6, 2.7, "S = Q K$^T$   wgmma 64 x 128 x 16", PRODUCTS, size=7)
        box(axes, 54.2, y + 6.2, 17.6, 2.7, "mask, maximum, exp2, sum; P packed", OTHER, size=6.2)
        box(axes, 54.2, y + 9.6, 17.6, 2.7, "O += P V   wgmma 64 x 64 x 16", PRODUCTS, size=7)
        arrow(axes, (63, y + 5.5), (63, y + 6.2))
        arrow(axes, (63, y + 8.9), (63, y + 9.6))

    arrow(axes, (11.5, 14.2), (25, 14.2), "TMA, 128-byte\nswizzle", at=(17.6, 13.8))
    arrow(axes, (11.5, 23.2), (25, 23.2), "TMA", at=(17.6, 22.8))
    arrow(axes, (11.5, 32.2), (25, 32.2), "TMA", at=(17.6, 31.8))
    arrow(axes, (54, 9.2), (43, 9.2), "starts, by mbarriers", at=(48.2, 8.7), dashed=True, size=6.4)
    arrow(axes, (41, 13.0), (54.2, 20.0), "")
    arrow(axes, (41, 22.4), (54.2, 20.8), "")
    note(axes, 48.0, 11.2, "read by wgmma\nthrough descriptors", size=6.4, align="center")
    arrow(axes, (41, 31.4), (54.2, 27.4), "")
    note(axes, 47.1, 31.5, "V by wgmma;\nP comes from\nregisters", size=6.6, align="center")
    note(axes, 47.1, 23.0, "the same\nfor B", size=6.6, align="center", colour=FAINT)
    arrow(axes, (53, 42.2), (41, 42.2), "st.shared", at=(47.1, 41.8))
    note(axes, 47.1, 42.7, "log-sum-exp goes\nstraight out", size=6.4, align="center", colour=FAINT)
    arrow(axes, (25, 40.8), (11.5, 40.8), "16-byte stores", at=(18.2, 40.4))

    note(axes, 1, 47.6, "Ping-pong: one warpgroup's exponentials run while the other's products do", size=8.5)
    h, x0, unit = 3.0, 12.5, 14.0
    at = {"warpgroup A": 50.2, "warpgroup B": 55.0, "tensor cores": 59.2}
    for name, y in at.items():
        axes.text(x0 - 0.8, y + h / 2, name, ha="right", va="center", size=8)
    issue = 0.3 * unit
    box(axes, x0, at["warpgroup B"], 0.92 * unit, h, "softmax 0", REGISTERS, size=6.6)
    for step in range(4):
        x, i, first = x0 + step * unit, step // 2 + 1, step % 2 == 0
        mine, other = at["warpgroup A" if first else "warpgroup B"], at["warpgroup B" if first else "warpgroup A"]
        face = A if first else B
        box(axes, x, mine, issue, h, "issue", face, size=6.6)
        box(
            axes,
            x + 0.04 * unit,
            at["tensor cores"],
            unit * 0.96,
            h,
            f"Q K{i}$^T$, then P{i - 1} V{i - 1}",
            face,
            size=6.8,
        )
        width = min(1.4 * unit, x0 + 4.4 * unit - (x + 0.54 * unit))
        text = f"softmax {i}, O scaled, P{i} packed" if width > unit else f"softmax {i} ..."
        box(axes, x + 0.54 * unit, mine, width, h, text, REGISTERS, size=6.6)
        if step < 3:
            start, end = (mine + h, other) if first else (mine, other + h)
            arrow(axes, (x + issue, start), (x + unit, end), colour="#b3541e", dashed=True)
    note(axes, x0, 63.2, "Dashed: as soon as its products are issued, a warpgroup passes the turn on through a numbered barrier.\n"
         "The softmax of a tile begins when its scores are there, over the product P V of the tile before. The lengths are\n"
         "a drawing, not a measurement.", colour=FAINT)  # fmt: skip
    return figure


FIGURES = {"kernels_rule": rule, "kernels_sm80": sm80, "kernels_sm90a": sm90}


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs" / "_static")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    chosen = parser.parse_args()
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
            metadata = {"Date": None, "Creator": None} if chosen.format == "svg" else {"Software": None}
            draw().savefig(chosen.to / f"{name}.{chosen.format}", metadata=metadata, dpi=160)


if __name__ == "__main__":
    main()
