"""The parts of `benchmarks/gpu.py` that need no GPU: how it counts, times, judges, isolates, and that all rivals compute one thing."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cfm
from cfm.kernels import gene_sums, ops
from cfm.tokens import TokenBatch

FOLDER = Path(__file__).parents[2] / "benchmarks"
# Behind all else, since names there are short.
sys.path.append(str(FOLDER))

import gpu  # noqa: E402
import gpu_cases  # noqa: E402
import gpu_machine  # noqa: E402
import gpu_models  # noqa: E402
import gpu_report  # noqa: E402
import gpu_rivals  # noqa: E402
import gpu_sums  # noqa: E402
import gpu_tables  # noqa: E402
import gpu_targets  # noqa: E402
import gpu_timing  # noqa: E402
from gpu_cases import Case, Spread  # noqa: E402

CPU = torch.device("cpu")
RAGGED = Case("ragged", "three cells", (5, 17, 9), 2)
EQUAL = Case("uniform", "two cells", (16, 16), 2)
UNKNOWN = Case("known", "half", (6, 130, 9), 2, 0.5, True)
CASES = [replace(case, flex=True) for case in (RAGGED, EQUAL, UNKNOWN)]
ON_CPU = ["padded SDPA", "padded eager", "SDPA cell by cell", "FlexAttention"]


@pytest.fixture(autouse=True)
def _no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends the process of the tests."""
    watchdog = SimpleNamespace(dump_traceback_later=lambda *_, **__: None, cancel_dump_traceback_later=lambda: None)
    monkeypatch.setattr(gpu_report, "faulthandler", watchdog)


# -- Cases and numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("table", gpu_cases.TABLES)
def test_cases(table: str, quick: bool) -> None:
    found = gpu_cases.cases(table, quick)
    assert found == gpu_cases.cases(table, quick)  # the same in every run, so that runs can be compared
    assert len({case.name for case in found}) == len(found)
    for case in found:
        assert case.table == table
        assert case.offsets[-1] == case.tokens
        if table == "uniform":
            assert case.same
            assert case.tokens == 16_384
        else:
            assert not case.same
            assert 300 <= min(case.lengths) <= case.longest <= 2048
        if case.share is not None:
            assert all(0 < k < n for k, n in zip(case.known, case.lengths, strict=True))
    with pytest.raises(ValueError, match="there are uniform, ragged, known"):
        gpu_cases.cases("other")


def test_the_issue_s_cases_are_there() -> None:
    assert [case.lengths[0] for case in gpu_cases.cases("uniform")] == [512, 1024, 2048, 4096]
    assert {(len(case.lengths), case.heads) for case in gpu_cases.cases("ragged")} == {
        (n, heads) for n in (64, 512) for heads in (8, 12, 18, 20)
    }
    assert [case.share for case in gpu_cases.cases("known")] == [None, 0.25, 0.5, 0.75]


def test_only_pairs_that_see_each_other_count() -> None:
    assert RAGGED.flops() == 4 * 64 * 2 * (25 + 289 + 81)
    assert RAGGED.flops("backward") == 2.5 * RAGGED.flops()
    visible = [gpu_rivals.rule_mask(n, n, n // 2, CPU).sum() for n in UNKNOWN.lengths]
    assert UNKNOWN.pairs == sum(visible)


def test_spread_and_rates() -> None:
    spread = Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert spread == Spread(2.0, 3.0, 4.0, 5)
    assert gpu_timing.rates(6.0, spread) == {"low": 1.5, "median": 2.0, "high": 3.0, "repeats": 5}


def test_lines_and_columns() -> None:
    made = gpu_cases.row(EQUAL, "somebody", "forward", Spread(0.5, 1.0, 2.0, 100), 12.0, 1e-3)
    assert made["tflops"] == pytest.approx(EQUAL.flops() / 1e9)
    text = gpu_cases.line({**made, "wrong": True, "error": 0.5})
    for part in ("somebody", "1.000 ms", "(0.500 to 2.000, 100)", "TFLOP/s", "26%", "12 MiB", "WRONG: error 5.0e-01"):
        assert part in text
    assert "WRONG" not in gpu_cases.line({**made, "wrong": False, "error": 0.0})
    assert gpu_cases.line(gpu_cases.no_row("t", "c", "somebody", "forward", "is\n not there")).endswith(
        "-  is not there"
    )
    cells = {
        "rival": "x",
        "what": "cells",
        "ms": Spread(1, 1, 1, 1).asdict(),
        "cells/s": {"median": 1234.0},
        "cosine": 1.0,
    }
    assert "1,234 cells/s" in gpu_cases.line(cells)
    assert gpu_cases.columns([["a", "bb"], ["ccc", ""]]) == "a    bb\nccc"


# -- Rivals -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.table)
def test_rivals_compute_what_we_compute(case: Case, name: str) -> None:
    (rival,) = (x for x in gpu_rivals.RIVALS if x.name == name)
    assert rival.lacks(case, CPU, torch.float32) is None
    qkv = gpu_rivals.inputs(case, CPU, torch.float32)
    (mine,) = gpu_rivals._ours("sdpa", case, [[x.detach().requires_grad_() for x in qkv]])
    (other,) = rival.ready(case, [qkv])
    backward = name != "FlexAttention"  # which has none on the CPU, and refuses to begin
    for x in other.leaves:
        x.requires_grad_(backward)
    expected, found = mine.forward(), other.packed(other.forward())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gpu_rivals.error(case, qkv, found) < 1e-5
    if not backward:
        return
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    theirs = torch.autograd.grad(found, other.leaves, grad)
    ours = torch.autograd.grad(expected, mine.leaves, grad)
    for one, right in zip(theirs, ours, strict=True):
        one = one if one.shape == right.shape else gpu_rivals.pack(case, one)
        torch.testing.assert_close(one, right, rtol=1e-3, atol=1e-5)


def test_an_error_in_the_first_cell_is_seen() -> None:
    qkv = gpu_rivals.inputs(UNKNOWN, CPU, torch.float32)
    everyone = replace(UNKNOWN, share=None)
    (wrong,) = gpu_rivals._ours("sdpa", everyone, [qkv])
    assert gpu_rivals.error(UNKNOWN, qkv, wrong.forward()) > gpu_tables._TOLERANCE


def test_those_for_a_gpu_say_what_they_lack() -> None:
    for rival in gpu_rivals.RIVALS:
        why = rival.lacks(RAGGED, CPU, torch.bfloat16)
        assert (why is None) == (rival.name in ON_CPU and rival.name != "FlexAttention"), rival.name


def test_padding_and_back() -> None:
    x = torch.randn(RAGGED.tokens, 2, 64)
    square = gpu_rivals.square(RAGGED, x)
    assert square.shape == (3, 2, 17, 64)
    assert not square[0, :, 5:].any()
    assert torch.equal(gpu_rivals.pack(RAGGED, square), x)


@pytest.mark.parametrize("at_once", [None, 2])
@pytest.mark.parametrize("case", [RAGGED, EQUAL, UNKNOWN], ids=lambda case: case.table)
def test_gene_sums_are_those_of_the_matrices(case: Case, at_once: int | None) -> None:
    qkv = gpu_rivals.inputs(case, CPU, torch.float32)
    genes = gpu_sums.gene_ids(case, 150, CPU)
    sums, counts = gpu_sums.summed("sdpa", case, qkv, genes, 150)()
    theirs, their_counts = gpu_sums.materialised(case, qkv, genes, 150, at_once)
    assert torch.equal(counts, their_counts)
    torch.testing.assert_close(sums * gene_sums.UNIT, theirs, rtol=1e-4, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("n_cells", [1, 2])
def test_performer_is_the_unfused_formula(n_cells: int) -> None:
    case = Case("performer", "small", (40,) * n_cells, 2)
    qkv = gpu_rivals.inputs(case, CPU, torch.float32)
    w = gpu_sums.directions(gpu_sums.FEATURES, CPU)
    square = [gpu_rivals.square(case, x) for x in qkv]
    found = gpu_rivals.pack(case, gpu_sums.unfused(*square, w, gpu_sums.EPS))
    expected = ops.performer_attention(*qkv, torch.tensor(case.offsets), w, "batch", gpu_sums.EPS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if n_cells == 1:  # the published code, one cell at a time, is our scope "cell"
        alone = ops.performer_attention(*qkv, torch.tensor(case.offsets), w, "cell", gpu_sums.EPS)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


# -- Tables, on a clock that is none ------------------------------------------------------------------------------------


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> gpu_report.Options:
    """The CPU in the place of a GPU: calls run once and take one millisecond."""

    def once(calls, repeats, seconds):
        for call in calls:
            call()
        return Spread(1.0, 1.0, 1.0, repeats)

    def memory(call):
        call()
        return 1.0

    for module in (gpu_tables, gpu_sums, gpu_models):
        monkeypatch.setattr(module, "timed", once, raising=False)
        monkeypatch.setattr(module, "peak", memory)
        monkeypatch.setattr(module, "device", lambda: CPU)
        monkeypatch.setattr(module, "free_bytes", lambda: 2**40, raising=False)
        monkeypatch.setattr(module, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_tables, "copies", lambda size: 2)
    return gpu_report.Options(False, 3, 0.1, time.time() + 600, 1000.0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_table(pretended, monkeypatch, tmp_path, capsys) -> None:
    def fails(case, sets):
        raise RuntimeError("no kernel for this")

    broken = gpu_rivals.Rival("broken", gpu_rivals.anybody, fails)
    wrong = gpu_rivals.Rival("wrong", gpu_rivals.anybody, partial(gpu_rivals._ours, "sdpa"), gradients=False)
    large = gpu_rivals.Rival("large", gpu_rivals.anybody, fails, needs=lambda case: 2**41)
    monkeypatch.setattr(gpu_tables, "RIVALS", (*gpu_rivals.RIVALS, broken, wrong, large))
    monkeypatch.setattr(gpu_tables, "cases", lambda name, quick: [UNKNOWN])
    progress = gpu_report.Progress(tmp_path / "rows.json", "known")
    gpu_tables.table("known", pretended, progress)
    rows = progress.done()["rows"]
    measured = {(x["rival"], x["what"]) for x in rows if "ms" in x}
    both = {(name, what) for name in ON_CPU for what in ("forward", "backward")}
    assert measured == both - {("FlexAttention", "backward")} | {("wrong", "forward")}
    why = {x["rival"]: x["why"] for x in rows if "why" in x}
    assert why["broken"] == "RuntimeError: no kernel for this"
    assert why["large"] == "would need about 2,048 GiB, and 1,024 GiB are free"
    assert why["flash_attn 3"] == "runs on a GPU"
    assert {x["rival"] for x in rows} == {x.name for x in gpu_tables.RIVALS}
    assert "half  (145 tokens" in capsys.readouterr().out
    assert not any(x.requires_grad for x in gpu_rivals.inputs(UNKNOWN, CPU, torch.float32))


def test_a_wrong_number_is_marked(pretended, monkeypatch) -> None:
    case = replace(UNKNOWN, share=None)
    rival = gpu_rivals.Rival("all see all", gpu_rivals.anybody, lambda _, sets: gpu_rivals._ours("sdpa", case, sets))
    made = gpu_tables.forward(UNKNOWN, rival, [gpu_rivals.inputs(UNKNOWN, CPU, torch.float32)] * 2, pretended)
    assert made["wrong"]
    monkeypatch.setattr(gpu_tables, "error", lambda *_: math.nan)
    assert gpu_tables.forward(UNKNOWN, rival, [gpu_rivals.inputs(UNKNOWN, CPU, torch.float32)] * 2, pretended)["wrong"]


def test_nothing_begins_after_its_time(pretended, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu_tables, "cases", lambda name, quick: [RAGGED])
    progress = gpu_report.Progress(tmp_path / "rows.json", "ragged")
    gpu_tables.table("ragged", replace(pretended, until=0.0), progress)
    assert {x["why"] for x in progress.rows if x["rival"] in ON_CPU[:3]} == {"the time of this table was up"}


@pytest.mark.parametrize("name", ["genes_table", "performer_table"])
def test_the_tables_of_sums(pretended, monkeypatch, tmp_path, name: str) -> None:
    monkeypatch.setattr(gpu_sums, "N_GENES", 2100)
    monkeypatch.setattr(gpu_sums, "PERFORMERS", ((50, 2),))
    random = type("Random", (), {"integers": lambda self, low, high, n: torch.arange(4, 4 + min(n, 3))})
    monkeypatch.setattr(gpu_sums.np.random, "default_rng", lambda seed: random())
    progress = gpu_report.Progress(tmp_path / "rows.json", name)
    getattr(gpu_sums, name)(replace(pretended, quick=True), progress)
    expected = {
        "genes_table": ["cfm sdpa", "matrices, 16 cells", "matrices, all cells"],
        "performer_table": ["cfm sdpa", "unfused, float32", "unfused, bfloat16"],
    }[name]
    assert [x["rival"] for x in progress.rows if "ms" in x] == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_the_table_of_models(pretended, monkeypatch, tmp_path) -> None:
    small = {"scgpt-human": (2, 128, 128, 2, 60_697)}, {"geneformer-v1-10m": (2, 128, 128, 2, 2048, 25_426)}
    gpt, geneformer = small
    monkeypatch.setitem(gpu_models.SCGPT, "scgpt-human", gpt["scgpt-human"])
    monkeypatch.setitem(gpu_models.GENEFORMER, "geneformer-v1-10m", geneformer["geneformer-v1-10m"])
    made = [replace(x, shape=(gpt | geneformer)[x.name]) for x in gpu_models.MODELS if x.name in gpt | geneformer]
    broken = gpu_models.Model("broken", lambda folder: None, ())
    monkeypatch.setattr(gpu_models, "MODELS", (*made, broken))
    cells = gpu_models.cells(3)
    monkeypatch.setattr(gpu_models, "cells", lambda n: cells)
    monkeypatch.setattr(gpu_models, "BACKENDS", ("sdpa", "cuda", "eager"))

    def wall(call, rounds):
        call()
        return Spread(1.0, 2.0, 4.0, rounds)

    monkeypatch.setattr(gpu_models, "wall", wall)
    # torch's own encoder takes no bfloat16 on the CPU.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    progress = gpu_report.Progress(tmp_path / "rows.json", "models")
    with cfm.settings.override(progress=False, verbosity="error"):
        gpu_models.models_table(pretended, progress)
    measured = {(x["case"], x["rival"]): x for x in progress.rows if "ms" in x}
    rivals = ("sdpa", "eager", "padded", "tl.embed, auto")
    has_bert = importlib.util.find_spec("transformers") is not None
    expected = {(x.name, rival) for x in made for rival in rivals if rival != "padded" or x.name in gpt or has_bert}
    assert set(measured) == expected
    assert all(x["cells/s"]["median"] == 1500 for x in measured.values())
    assert all(x.get("cosine", 1.0) > 0.9999 for x in measured.values())
    why = {x["case"]: x["why"] for x in progress.rows if "ms" not in x and x["rival"] == "cfm"}
    assert list(why) == ["broken"]


def test_packs_hold_all_cells_in_their_order() -> None:
    lengths = np.array([5, 7, 3, 20, 1])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    batch = TokenBatch(np.arange(36, dtype=np.int32), None, offsets, np.arange(5))
    groups = gpu_models.packed(batch, 12)
    assert [group.lengths.tolist() for group in groups] == [[5, 7], [3], [20], [1]]
    assert np.concatenate([group.ids for group in groups]).tolist() == list(range(36))


# -- Isolation ----------------------------------------------------------------------------------------------------------


def test_another_process_goes_on_without_whom_the_first_one_died_of(tmp_path, capsys) -> None:
    path = tmp_path / "rows.json"
    first = gpu_report.Progress(path, "ragged")
    with first.trying("a", "good"):
        first.add(gpu_cases.no_row("ragged", "a", "good", "forward", "x"))
    with pytest.raises(KeyboardInterrupt), first.trying("a", "bad"):
        raise KeyboardInterrupt
    second = gpu_report.Progress(path, "ragged")
    assert second.has("a", "good")
    assert second.has("a", "bad")
    assert second.broken == {"bad": "ended the process, or never ended, at a"}
    third = gpu_report.Progress(path, "ragged")
    assert len(third.rows) == 2


def test_files_are_whole_or_not_there(tmp_path) -> None:
    path = tmp_path / "new" / "report.json"
    gpu_report.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        gpu_report.write_json(path, loop)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [x.name for x in path.parent.iterdir()] == ["report.json"]


STEP = gpu.Step("ragged", "", 10, 1)
SCRIPTS = {
    "good": "write('ragged.json', {'rows': [1]})",
    "dies": "sys.exit(3)",
    "hangs": "time.sleep(60)",
    # Dies of one rival, then, started again, comes to its end.
    "recovers": """
import gpu_report
progress = gpu_report.Progress(scratch / 'ragged.rows.json', 'ragged')
if not progress.broken:
    with progress.trying('a', 'bad'):
        os._exit(134)
write('ragged.json', progress.done())
""",
}


@pytest.mark.skipif(os.name != "posix", reason="sessions of processes are POSIX")
@pytest.mark.parametrize("name", SCRIPTS)
def test_steps_in_processes_of_their_own(tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    script = (
        f"import json, os, sys, time\nfrom pathlib import Path\nsys.path.append({str(FOLDER)!r})\n"
        f"scratch = Path({str(tmp_path)!r})\ndef write(name, data): (scratch / name).write_text(json.dumps(data))\n"
    )
    seconds = 1.0 if name == "hangs" else 30.0
    command = [sys.executable, "-c", script + SCRIPTS[name]]
    found = gpu.child(STEP, command, seconds, tmp_path, dict(os.environ))
    if name == "good":
        assert found == {"rows": [1]}
    elif name == "recovers":
        assert [x["rival"] for x in found["rows"]] == ["bad"]
        assert "failed" not in found
    else:
        assert found["failed"] == {"dies": "ended with code 3", "hangs": "did not end within 1 s"}[name]
        assert found["rows"] == []


def test_time_is_left_for_later_steps() -> None:
    assert [step.name for step in gpu.STEPS] == [
        "machine", "build", "again", "tests", "sanitizer", "ceilings", "uniform", "ragged", "known", "genes", "performer",
        "models",
    ]  # fmt: skip
    left = 450.0
    for i, step in enumerate(gpu.STEPS):
        seconds = gpu.allowance(i, left)
        assert seconds >= step.least
        left -= seconds
    assert left >= 0
    assert gpu.allowance(0, 10) < 0


def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "There is no GPU here" in capsys.readouterr().err


# -- Verdicts -----------------------------------------------------------------------------------------------------------


def row(table: str, case: str, rival: str, ms: float, what: str = "forward", **more: object) -> dict:
    return {"table": table, "case": case, "rival": rival, "what": what, "ms": Spread(ms, ms, ms, 9).asdict(), **more}


def test_verdicts() -> None:
    report = {
        "machine": {"capability": [9, 0]},
        "tests": {"passed": True},
        "uniform": {"rows": [row("uniform", "16 cells of 1,024, 32 heads", name, ms, tflops=9 / ms)
                             for name, ms in (("cfm cuda", 1.0), ("flash_attn 3", 0.9), ("torch varlen", 1.4))]},
        "ragged": {"rows": [row("ragged", case, name, ms, what, tflops=8 / ms) for case in ("a", "b") for what in
                            ("forward", "backward") for name, ms in
                            (("cfm cuda", 1.0), ("torch varlen", 1.3 if case == "a" else 1.2), ("flash_attn 2", 5.0))]},
        "known": {"rows": [row("known", "64 cells, all known", "cfm cuda", 2.0), row("known", "50% known", "cfm cuda", 1.0),
                           row("known", "50% known", "FlexAttention", 2.5)]},
        "genes": {"rows": [row("genes", "a", "cfm cuda", 1.0, MiB=300.0), row("genes", "b", "cfm cuda", 1.0, MiB=900.0)]},
        "performer": {"rows": [gpu_cases.no_row("performer", "a", "cfm cuda", "forward", "broke")]},
        "models": {"rows": [{**row("models", "scgpt-human", name, 1.0), "cells/s": {"median": x}}
                            for name, x in (("cuda", 300.0), ("padded", 100.0))]},
    }  # fmt: skip
    found = {x.target: x for x in gpu_targets.judge(report)}
    met = {name.split(",")[0]: x.met for name, x in found.items()}
    assert met["ragged forward against the faster of torch varlen and flash_attn 2"] is False
    assert found["ragged forward against the faster of torch varlen and flash_attn 2"].found == "1.20 to 1.30 x"
    assert met["ragged forward against flash_attn 2 or torch varlen"] is None  # for other GPUs
    assert met["forward at 1k to 2k against flash_attn 3"] is True
    assert met["rule for unknown tokens against FlexAttention"] is True
    assert met["genes by genes"] is False
    assert met["Performer against the formula in float32"] is None
    assert met["scGPT end to end against padded"] is True
    assert met["half of the tokens known against all"] is True
    assert met["ragged backward against flash_attn 2 or torch varlen"] is True
    assert met["all tests on the GPU"] is True


def test_an_empty_report_is_judged_by_nobody() -> None:
    assert {x.met for x in gpu_targets.judge({})} == {None}


def test_what_is_wrong_and_what_is_only_slow() -> None:
    assert gpu.problems({}) == []
    report = {
        "uniform": {"failed": "ended with code 1", "rows": []},
        "tests": {"passed": False, "counts": {"failed": 2}},
        "build": {"compiled": 10},
        "again": {"compiled": 1},
        "sanitizer": {"memcheck": {"clean": True, "summary": ""}, "racecheck": {"clean": False, "summary": "1 hazard"}},
        "ragged": {
            "rows": [row("ragged", "a", "x", 1.0, error=0.5, wrong=True), row("ragged", "a", "y", 1.0, wrong=False)]
        },
    }
    found = gpu.problems(report)
    assert len(found) == 5
    assert "racecheck found something: 1 hazard" in found
    assert "x, a: error 5.0e-01" in found
    assert gpu.problems({"sanitizer": {"why": "is not installed"}}) == []


# -- What other programs print ------------------------------------------------------------------------------------------


PYTEST = """\
collecting ... collected 4 items

tests/kernels/test_gpu.py::test_a PASSED                                 [ 25%]
tests/kernels/test_gpu.py::test_a[all equal] PASSED                      [ 50%]
tests/kernels/test_gpu.py::test_b FAILED                                 [ 75%]
tests/kernels/test_gpu.py::test_c SKIPPED (unconditional skip)           [100%]

=================================== FAILURES ===================================
=========================== short test summary info ============================
FAILED tests/kernels/test_gpu.py::test_b - assert 0
==================== 1 failed, 2 passed, 1 skipped in 0.02s ====================
"""


def test_reading_pytest() -> None:
    found = gpu_machine.test_result(1, PYTEST)
    assert found["counts"] == {"passed": 2, "failed": 1, "error": 0, "skipped": 1}
    assert not found["passed"]
    assert gpu_machine.test_result(0, PYTEST)["passed"]
    assert found["failures"] == ["FAILED tests/kernels/test_gpu.py::test_b - assert 0"]
    assert not gpu_machine.test_result(0, "")["passed"]  # all skipped is not passed
    assert gpu_machine.test_result(None, "tests/x.py::test_d\n")["hung at"] == ["tests/x.py::test_d"]


def test_reading_the_sanitizer() -> None:
    good = f"{gpu_machine.ALL_RAN}\n========= ERROR SUMMARY: 0 errors\n"
    assert gpu_machine.sanitizer_result(0, good) == {"clean": True, "summary": "ERROR SUMMARY: 0 errors"}
    assert not gpu_machine.sanitizer_result(9, good)["clean"]
    assert not gpu_machine.sanitizer_result(0, "died early")["clean"]


def test_commands_that_are_not_there() -> None:
    assert gpu_machine.said(["no-such-command"]) == ""
