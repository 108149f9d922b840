"""Every Python block of the README and of the pages runs as it is printed, in the order of its page."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and code of each block."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start()].count("\n") + 1, textwrap.dedent(m[2])) for m in _BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page)])
@pytest.mark.filterwarnings("ignore")  # pages show what users type, and scanpy warns of its own accord
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), vars(module))
    assert "cfm" in vars(module)
