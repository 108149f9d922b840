"""Time of ``import cfm`` beside that of what it must not load, each in a fresh process, in turns.

python benchmarks/import_time.py
"""

from __future__ import annotations

import subprocess
import sys

from side_by_side import compare


def load(module: str) -> None:
    """Import a module in a process of its own."""
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def main() -> None:
    """Print ratios."""
    for module in ("anndata", "scanpy", "torch", "scvi"):
        ratio = compare(lambda module=module: load(module), lambda: load("cfm"), rounds=5)
        print(f"import {module:8s} {ratio.seconds[0]:5.2f} s, import cfm {ratio.seconds[1]:5.2f} s: {ratio}")


if __name__ == "__main__":
    main()
