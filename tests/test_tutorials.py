"""The tutorials run from top to bottom, and what they have stored fits into a repository."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
CITE_SEQ = ROOT.parent / "shared" / "data" / "multi" / "citeseq_pbmc5k_200.h5mu"


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def run(path: Path, *, epochs: int) -> dict[str, Any]:
    """Run all code, with training cut short; what it is about is in the names that are left."""
    module = types.ModuleType("tutorial")
    for number, cell in enumerate(cells(path)):
        code = "".join(cell["source"])
        if 'method="scvi"' in code or "impute=" in code:
            code = re.sub(r", epochs=\d+", "", code)
            code = re.sub(r"(cfm\.tl\.integrate\([^)\n]*)\)", rf"\1, epochs={epochs})", code)
            assert f"epochs={epochs}" in code
        exec(compile(code, f"{path.name}, cell {number}", "exec"), vars(module))
    return vars(module)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as a reader sees them; scanpy warns of its own accord
def test_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    with mpl.rc_context():
        names = run(ROOT / "tutorials" / "batches.ipynb", epochs=2)
    before, after = names["score"]("X_pca"), names["score"]("X_cfm_integrated")
    # What the page says of its own batches: taken out, and the types still together.
    assert before["neighbours of the other batch"] < 0.1
    assert after["neighbours of the other batch"] > 0.35
    assert after["neighbours of the same type"] > before["neighbours of the same type"] - 0.05
    assert (tmp_path / "my_space" / "integration.json").is_file()
    assert set(names["both"].obs["batch"]) == {"first", "second", "third", "fourth"}


@pytest.mark.slow
@pytest.mark.skipif(not CITE_SEQ.exists(), reason=f"{CITE_SEQ.name} is not beside this repository")
@pytest.mark.filterwarnings("ignore")
def test_cite_seq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CITE_SEQ_FILE", str(CITE_SEQ))
    mpl.use("Agg")
    with mpl.rc_context():
        names = run(ROOT / "tutorials" / "cite_seq.ipynb", epochs=2)
    assert names["mosaic"].obsm["X_cfm_joint"].shape == (200, 20)
    assert len(names["forgotten"]) == 66
    assert not names["mosaic"].mod["prot"].obs_names.isin(names["forgotten"]).any()
    assert names["scores"].shape == (29, 2)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_and_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < 400_000
    for cell in cells(path):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            text = json.dumps({**output, "data": {k: v for k, v in output.get("data", {}).items() if k != "image/png"}})
            assert not re.search(r"(?<![\w.])/(?:home|Users|root|tmp|work|usr)/|site-packages", text)


def test_the_tutorial_that_pages_do_not_run_shows_what_it_gave() -> None:
    path = ROOT / "tutorials" / "cite_seq.ipynb"
    shown = [output for cell in cells(path) for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert len(shown) == 3
    assert all(cell["execution_count"] for cell in cells(path))
