"""What the kernels have to reach, and whether a report says that they did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_cases import Row, find

Report = Mapping[str, Any]

OURS = "cfm cuda"
STOCK = ("torch varlen", "flash_attn 2")


@dataclass(frozen=True)
class Found:
    """Numbers that a target is about, the worst of which counts; or why there are none."""

    numbers: tuple[float, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Target:
    """Something to reach.

    Parameters
    ----------
    name
        What it is about.
    limit
        What has to be reached.
    found
        Reads it from a report.
    unit
        Behind the numbers.
    at_most
        Whether less is better.
    hopper
        Whether it is for Hopper only; False: only for others; None: for all.
    """

    name: str
    limit: float
    found: Callable[[Report], Found]
    unit: str = "x"
    at_most: bool = False
    hopper: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a target was met; None when nobody can say."""

    target: str
    wanted: str
    found: str
    met: bool | None


def judge(report: Report) -> list[Verdict]:
    """All verdicts, in the order of the targets."""
    verdicts = []
    hopper = tuple(report.get("machine", {}).get("capability", ())) == (9, 0)
    for target in TARGETS:
        wanted = f"{'<=' if target.at_most else '>='} {target.limit:g} {target.unit}"
        if target.hopper is not None and target.hopper != hopper:
            here = "for Hopper only" if target.hopper else "not for Hopper"
            verdicts.append(Verdict(target.name, wanted, here, None))
            continue
        found = target.found(report)
        if not found.numbers:
            verdicts.append(Verdict(target.name, wanted, found.why or "not measured", None))
            continue
        low, high = min(found.numbers), max(found.numbers)
        worst = high if target.at_most else low
        # Written so that NaN fails.
        met = worst <= target.limit if target.at_most else worst >= target.limit
        span = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        verdicts.append(Verdict(target.name, wanted, f"{span} {target.unit}", bool(met)))
    return verdicts


def rows(report: Report, table: str) -> list[Row]:
    """Rows of a table."""
    return report.get(table, {}).get("rows", [])


def faster(table: str, than: Iterable[str], what: str = "forward", cases: str = "") -> Callable[[Report], Found]:
    """How many times faster ours is than the fastest of some others, for each case whose name has `cases` in it."""
    others = tuple(than)

    def found(report: Report) -> Found:
        numbers = []
        for mine in find(rows(report, table), rival=OURS, what=what):
            times = [
                x["ms"]["median"]
                for x in find(rows(report, table), case=mine["case"], what=what)
                if x["rival"] in others
            ]
            if times and cases in mine["case"]:
                numbers.append(min(times) / mine["ms"]["median"])
        return Found(tuple(numbers), f"no times of {OURS} and of {' or '.join(others)}, {what}, {table}")

    return found


def at_lengths(than: str, lengths: tuple[str, ...]) -> Callable[[Report], Found]:
    """`faster` for cells of these lengths."""
    parts = [faster("uniform", [than], cases=f"of {length},") for length in lengths]

    def found(report: Report) -> Found:
        made = [part(report) for part in parts]
        return Found(tuple(x for one in made for x in one.numbers), made[0].why)

    return found


def of_uniform_rate(report: Report) -> Found:
    """Rate on ragged cells, in parts of our best rate on equal ones."""
    equal = [x["tflops"] for x in find(rows(report, "uniform"), rival=OURS, what="forward")]
    ragged = [x["tflops"] for x in find(rows(report, "ragged"), rival=OURS, what="forward")]
    return Found(tuple(x / max(equal) for x in ragged) if equal else (), f"no rates of {OURS} in both tables")


def half_known(report: Report) -> Found:
    """How much faster a pass is when half of the tokens are known."""
    found = find(rows(report, "known"), rival=OURS, what="forward")
    plain = [x["ms"]["median"] for x in found if "all known" in x["case"]]
    half = [x["ms"]["median"] for x in found if "50% known" in x["case"]]
    return Found((plain[0] / half[0],) if plain and half else (), f"no times of {OURS} for both")


def memory_of_sums(report: Report) -> Found:
    """Peak memory of the sums over genes, tables and all."""
    return Found(tuple(x["MiB"] for x in find(rows(report, "genes"), rival=OURS)), f"no sums of {OURS}")


def end_to_end(model: str) -> Callable[[Report], Found]:
    """Cells per second, in parts of those of the padded model."""

    def found(report: Report) -> Found:
        speed = {
            x["rival"]: x["cells/s"]["median"] for x in rows(report, "models") if x["case"] == model and "cells/s" in x
        }
        if not {"cuda", "padded"} <= speed.keys():
            return Found(why=f"no cells per second of {model} with cuda and padded")
        return Found((speed["cuda"] / speed["padded"],))

    return found


def same_bits(report: Report) -> Found:
    """1 when the tests passed, those of equal bits among them."""
    tests = report.get("tests", {})
    return Found((float(tests["passed"]),), "") if "passed" in tests else Found(why="the tests did not run")


TARGETS = (
    Target("all tests on the GPU, equal bits over 20 runs among them", 1, same_bits, "(1: passed)"),
    Target("ragged forward against the faster of torch varlen and flash_attn 2", 1.25, faster("ragged", STOCK), hopper=True),
    Target("ragged forward against flash_attn 2 or torch varlen", 0.85, faster("ragged", STOCK), hopper=False),
    Target("forward at 1k to 2k against flash_attn 3", 0.85, at_lengths("flash_attn 3", ("1,024", "2,048")), hopper=True),
    Target("rule for unknown tokens against FlexAttention", 2, faster("known", ["FlexAttention"], cases="% known")),
    Target("genes by genes, peak memory with its tables", 500, memory_of_sums, "MiB", at_most=True),
    Target("Performer against the formula in float32", 3, faster("performer", ["unfused, float32"])),
    Target("scGPT end to end against padded", 3, end_to_end("scgpt-human")),
    Target("ragged forward, of our own rate on equal cells", 0.85, of_uniform_rate),
    Target("half of the tokens known against all", 1.6, half_known),
    Target("ragged backward against flash_attn 2 or torch varlen", 0.65, faster("ragged", STOCK, "backward")),
)  # fmt: skip
