"""Our numbers against those of the official implementation, array by array.

    python benchmarks/parity.py FAMILY --fixtures DIR --cells FILE

FAMILY is one of those below. DIR has checkpoints in their official layout with small random weights, and .npz files
with what the official code gave on the cells of FILE. Prints a line for each array: its name, the largest difference,
the tolerance, and pass, FAIL, input (it went into the model), or not covered and why. The exit code is 1 if one fails.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import anndata as ad
import numpy as np

import cfm

FAMILIES = ("geneformer", "scgpt", "scfoundation", "scbert", "uce")


class Report:
    """The arrays of a fixture folder, each waiting for a verdict.

    Parameters
    ----------
    folder
        Where the .npz files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed = self.passed = 0
        self._inputs: set[str] = set()
        self._open: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as arrays:
                self._open |= {f"{path.stem}/{name}": arrays[name] for name in arrays.files}
        self.all = dict(self._open)

    def has(self, name: str) -> bool:
        """Whether the folder holds this array."""
        return name in self.all

    def names(self, start: str = "") -> list[str]:
        """Names of all arrays that begin like this."""
        return [name for name in self.all if name.startswith(start)]

    def input(self, name: str) -> np.ndarray:
        """An array that goes into the comparison; it is listed as an input unless it is checked too."""
        self._inputs.add(name)
        return self.all[name]

    def check(self, name: str, found: object, tolerance: float = 0.0, *, by: str = "absolute") -> None:
        """Compare with the official array; tolerance 0 means equal.

        `by` says what the difference is measured in: "absolute", "scale" (the largest official number, at least 1),
        "largest" (the largest official number, however small), or "relative" (each official number).
        """
        expected, found = self.all[name], np.asarray(found)
        self._open.pop(name, None)
        if found.shape != expected.shape:
            self._line(name, f"shape {found.shape}, not {expected.shape}", tolerance, by, False)
            return
        if expected.dtype.kind in "USO":
            difference = float((found.astype(str) != expected.astype(str)).sum())
        else:
            gap = np.abs(found.astype(np.float64) - expected.astype(np.float64))
            size = np.abs(expected.astype(np.float64))
            if by == "scale":
                gap /= max(1.0, float(size.max(initial=0)))
            elif by == "largest":
                gap /= float(size.max(initial=0)) or 1.0
            elif by == "relative":
                gap = np.divide(gap, size, out=gap, where=size > 0)
            difference = float(gap.max(initial=0))
        self._line(name, f"{difference:.2e}", tolerance, by, difference <= tolerance)  # NaN is no pass

    def not_covered(self, name: str, why: str) -> None:
        """An array that we do not compare, with the reason."""
        self._open.pop(name, None)
        print(f"{name:55s}  not covered: {why}")

    def finish(self) -> int:
        """Print what is left, which went in as an input, and the sum; the exit code."""
        forgotten = [name for name in self._open if name not in self._inputs]
        for name in self._open:
            print(f"{name:55s}  {'NOT LOOKED AT' if name in forgotten else 'input'}")
        n_inputs = len(self._open) - len(forgotten)
        print(f"{self.passed} passed, {self.failed} failed, {n_inputs} inputs, {len(forgotten)} not looked at, "
              f"of {len(self.all)} arrays")  # fmt: skip
        return int(self.failed > 0 or self.passed == 0 or bool(forgotten))

    def _line(self, name: str, difference: str, tolerance: float, by: str, good: bool) -> None:
        self.passed, self.failed = self.passed + good, self.failed + (not good)
        bound = "exact" if tolerance == 0 else f"{tolerance:.0e} {by}"
        print(f"{name:55s}  {difference:>10s}  {bound:16s}  {'pass' if good else 'FAIL'}")


def main() -> None:
    """Run the comparison of a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--fixtures", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cells", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    cfm.settings.progress = False
    cfm.settings.verbosity = "error"
    report = Report(options.fixtures)
    import_module(f"parity_{options.family}").compare(report, ad.read_h5ad(options.cells))
    sys.exit(report.finish())


if __name__ == "__main__":
    main()
