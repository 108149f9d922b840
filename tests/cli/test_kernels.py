from __future__ import annotations

import pytest

import cfm
from cfm.cli import main
from cfm.kernels import cache, compiler, sources

needs_compiler = pytest.mark.skipif(compiler.missing() is not None, reason="no NVRTC")


def test_explain_on_the_cpu(capsys):
    assert main(["kernels", "explain", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "attention by     sdpa: torch's attention, cell by cell" in text
    assert "cuda    it runs on a GPU of NVIDIA, and the tokens are on 'cpu'" in text
    assert str(cache.folder()) in text


def test_explain_for_a_gpu_that_is_not_there(capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["kernels", "explain", "--device", "cuda", "--width", "32", "--dtype", "float16", "--unknown"]) == 0
    assert "torch.cuda.is_available() is False" in capsys.readouterr().out


def test_explain_heeds_the_setting(capsys):
    with cfm.settings.override(attention="eager"):
        assert main(["kernels", "explain"]) == 0
    assert "attention by     eager" in capsys.readouterr().out
    with cfm.settings.override(attention="cuda"):
        assert main(["kernels", "explain", "--device", "cpu"]) == 1
    assert "attention='cuda' runs on a GPU" in capsys.readouterr().err


def test_build_without_a_gpu_and_only_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiler, "missing", lambda: None)
    monkeypatch.setattr(compiler, "version", lambda: "13.0")
    monkeypatch.setattr(compiler, "architectures", lambda: ["sm_80", "sm_90"])
    made = []
    monkeypatch.setattr(compiler, "compile_unit", lambda unit, arch: (made.append((unit, arch)), (b"code", ""))[1])
    with cfm.settings.override(cache_dir=tmp_path):
        for _ in range(2):
            assert main(["kernels", "build", "--arch", "sm_80", "sm_90"]) == 0
        text = capsys.readouterr().out
    # sm_90 is called sm_90a where its own instructions are used.
    assert made == [(unit, arch) for arch in ("sm_80", "sm_90a") for unit in sources.units(arch)]
    assert text.count("was there") == len(made)
    assert f"in {tmp_path / 'kernels'}" in text


@needs_compiler
def test_build_for_one_that_the_compiler_does_not_know(tmp_path, capsys):
    with cfm.settings.override(cache_dir=tmp_path):
        assert main(["kernels", "build", "--arch", "sm_99"]) == 1
    assert "does not know sm_99. It knows sm_" in capsys.readouterr().err


def test_build_without_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr(compiler, "missing", lambda: "cuda-bindings is not installed: pip install 'cfm-tools[cuda]'")
    assert main(["kernels", "build"]) == 1
    assert "pip install 'cfm-tools[cuda]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["kernels"], ["kernels", "build", "--arch", "hopper"], ["kernels", "explain", "--width", "0"]]
)
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    capsys.readouterr()
