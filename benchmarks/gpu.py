"""Attention on a GPU: right against float64, then fast against its rivals, in one run of less than eight minutes.

    python benchmarks/gpu.py [--out report.json] [--quick] [--repeats 100] [--minutes 7.5] [--only STEP ...]

In this order: the machine; our kernels compiled for it, and found in the cache by a second process; the tests that need a
GPU, and compute-sanitizer where it is installed; the rates of a large product and of a copy, as ceilings; tables of
attention on equal cells, on ragged ones and on cells with unknown tokens, forward and backward, of sums over genes, and
of Performer attention; cells per second of whole models; and what was to be reached.

Times are medians by events of the GPU with the range of the middle half and the number of repeats, after warm-ups, on
random numbers, with inputs rotated so that none is in L2. TFLOP/s are useful ones: 4 x 64 x heads x pairs of tokens that
see each other, no pads, and the share of them in the measured rate of the large product. Each step is a process of its own:
one that fails or hangs is said so, and the others run. Clocks and power are left alone.

The exit code is 1 when a step failed or a number is wrong, and 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_cases import TABLES, columns
from gpu_report import Options, Progress, write_json
from gpu_targets import judge

GRACE = 20
"""Seconds that a process may take to end by itself after its time."""


@dataclass(frozen=True)
class Step:
    """A part of the run.

    Parameters
    ----------
    name
        Its name in the report.
    title
        What is printed above.
    most
        Seconds that it may take.
    least
        Seconds that earlier steps leave to it.
    """

    name: str
    title: str
    most: float
    least: float

    @property
    def rows(self) -> bool:
        """Whether it is a table, whose rows outlive the process that made them."""
        return self.name in (*TABLES, "genes", "performer", "models")


STEPS = (
    Step("machine", "The machine", 40, 15),
    Step("build", "Compiling our kernels", 90, 40),
    Step("again", "A second process finds them", 30, 10),
    Step("tests", "Tests against float64", 90, 40),
    Step("sanitizer", "compute-sanitizer on small shapes", 60, 15),
    Step("ceilings", "Ceilings", 25, 12),
    Step("uniform", "Equal cells", 60, 25),
    Step("ragged", "Ragged cells", 110, 45),
    Step("known", "Cells with unknown tokens", 110, 60),
    Step("genes", "Attention summed gene by gene", 35, 15),
    Step("performer", "Performer attention", 35, 15),
    Step("models", "Whole models, cells per second", 130, 70),
)


def allowance(i: int, left: float, steps: tuple[Step, ...] = STEPS) -> float:
    """Seconds for a step when so many are left: what the later ones need stays."""
    return min(steps[i].most, left - sum(step.least for step in steps[i + 1 :]))


def run_step(name: str, options: Options, scratch: Path) -> dict[str, Any]:
    """A step, in this process."""
    import gpu_machine

    if name == "machine":
        return gpu_machine.machine()
    if name in ("build", "again"):
        return gpu_machine.build()
    if name == "tests":
        return gpu_machine.tests(options.until)
    if name == "sanitizer":
        return gpu_machine.sanitizer(options.until)
    if name == "ceilings":
        from gpu_timing import ceilings

        found = ceilings(options.repeats, 2 * options.seconds)
        print(
            columns(
                [[key, f"{x['median']:,.0f}", f"({x['low']:,.0f} to {x['high']:,.0f})"] for key, x in found.items()]
            )
        )
        return dict(found)
    progress = Progress(scratch / f"{name}.rows.json", name)
    if name in TABLES:
        from gpu_tables import table

        table(name, options, progress)
    elif name == "models":
        from gpu_models import models_table

        models_table(options, progress)
    else:
        import gpu_sums

        (gpu_sums.genes_table if name == "genes" else gpu_sums.performer_table)(options, progress)
    return progress.done()


def child(step: Step, command: list[str], seconds: float, scratch: Path, environment: dict[str, str]) -> dict[str, Any]:
    """A step in a process of its own: what it leaves in `scratch`, and ``failed`` if it did not come to its end."""
    result, kept = scratch / f"{step.name}.json", scratch / f"{step.name}.rows.json"
    until = time.time() + seconds
    why = ""
    # A table goes on where a process died, without the rival that it died of.
    for _ in range(3 if step.rows else 1):
        process = subprocess.Popen([*command, "--until", str(until)], env=environment, start_new_session=True)
        try:
            code = process.wait(max(until + GRACE - time.time(), 1))
        except BaseException as problem:
            # A process in a session of its own does not hear of Ctrl-C.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(problem, subprocess.TimeoutExpired):
                raise
            why = f"did not end within {seconds:.0f} s"
            break
        if result.exists():
            return json.loads(result.read_text())
        why = f"ended with code {code}"
        if time.time() > until:
            break
    rows = Progress(kept, step.name).rows if kept.exists() else []
    return {"failed": why, **({"rows": rows} if step.rows else {})}


def everything(chosen: argparse.Namespace) -> dict[str, Any]:
    """All steps; the report."""
    end = time.time() + 60 * chosen.minutes
    report: dict[str, Any] = {"quick": chosen.quick, "repeats": chosen.repeats}
    steps = tuple(step for step in STEPS if not chosen.only or step.name in chosen.only)
    with tempfile.TemporaryDirectory() as scratch:
        # A cache of its own: compiling is shown, and nobody's kernels from another day are measured.
        environment = {**os.environ, "CFM_CACHE_DIR": str(Path(scratch) / "cache"), "PYTHONUNBUFFERED": "1"}
        for i, step in enumerate(steps):
            seconds = allowance(i, end - time.time(), steps)
            print(f"\n== {step.title}" + "\n" * (not step.rows), flush=True)
            if seconds < 5:
                report[step.name] = {"failed": "no time was left for it"}
            else:
                command = [sys.executable, __file__, "--step", step.name, "--scratch", scratch]
                command += ["--repeats", str(chosen.repeats), *["--quick"] * chosen.quick]
                if ceiling := report.get("ceilings", {}).get("bf16 product, TFLOP/s", {}).get("median"):
                    command += ["--ceiling", str(ceiling)]
                started = time.time()
                report[step.name] = child(step, command, seconds, Path(scratch), environment)
                report[step.name]["took"] = time.time() - started
            if "failed" in report[step.name]:
                print(f"FAILED: {report[step.name]['failed']}", flush=True)
            if chosen.out:
                write_json(chosen.out, report)
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """What went wrong, as opposed to what is slow."""
    found = [f"{step.title}: {report[step.name]['failed']}" for step in STEPS if "failed" in report.get(step.name, {})]
    if report.get("tests", {}).get("passed") is False:
        found.append(f"Tests failed: {report['tests']['counts']}")
    if report.get("again", {}).get("compiled") and report.get("build", {}).get("compiled"):
        found.append("A second process compiled again what was in the cache")
    for tool, made in report.get("sanitizer", {}).items():
        if isinstance(made, dict) and made.get("clean") is False:
            found.append(f"{tool} found something: {made['summary']}")
    for step in STEPS:
        for x in report.get(step.name, {}).get("rows", []):
            if x.get("wrong"):
                found.append(f"{x['rival']}, {x['case']}: error {x['error']:.1e}")
    return found


def main() -> int:
    """Run everything, or one step in the process of that step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write all numbers as JSON, after each step")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--repeats", type=int, default=100, help="of each measurement, where time allows")
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything")
    parser.add_argument(
        "--only", nargs="+", choices=[step.name for step in STEPS], metavar="STEP", help="only these steps"
    )
    for name, kind in (("step", str), ("scratch", Path), ("until", float), ("ceiling", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    chosen = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        print("There is no GPU here: torch.cuda.is_available() is False. Nothing was measured.", file=sys.stderr)
        return 2
    if chosen.step:
        options = Options(chosen.quick, chosen.repeats, 0.15 if chosen.quick else 0.3, chosen.until, chosen.ceiling)
        write_json(chosen.scratch / f"{chosen.step}.json", run_step(chosen.step, options, chosen.scratch))
        return 0
    report = everything(chosen)
    report["problems"] = problems(report)
    verdicts = judge(report)
    report["targets"] = [vars(x) for x in verdicts]
    words = {True: "met", False: "MISSED", None: "not judged"}
    print("\n== What was to be reached\n")
    print(columns([["", "wanted", "found", ""], *([x.target, x.wanted, x.found, words[x.met]] for x in verdicts)]))
    print("\n" + ("\n".join(["Wrong:", *report["problems"]]) if report["problems"] else "Nothing was wrong."))
    if chosen.out:
        write_json(chosen.out, report)
    return int(bool(report["problems"]))


if __name__ == "__main__":
    sys.exit(main())
