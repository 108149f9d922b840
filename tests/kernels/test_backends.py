"""Who computes attention, what the others lack, and how that is told."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

import cfm
from cfm._core.errors import OptionError
from cfm.kernels import backends
from cfm.kernels.errors import KernelError
from cfm.nn import attention as nn_attention
from cfm.nn.attention import attention

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def nothing_remembered():
    backends._broken.clear()
    backends._said.clear()
    yield
    backends._broken.clear()
    backends._said.clear()


@pytest.fixture
def messages():
    """Level and text of what the logger of the package says."""
    found: list[tuple[str, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append((record.levelname, record.getMessage()))
    logging.getLogger("cfm").addHandler(handler)
    yield found
    logging.getLogger("cfm").removeHandler(handler)


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU; `capability` changes it."""
    state = {"capability": (9, 0)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: state["capability"])
    monkeypatch.setattr(backends, "_no_package", lambda module, distribution: None)
    monkeypatch.setattr(backends, "_has_varlen", lambda: True)
    return state


def call(**changed) -> backends.Call:
    return backends.Call(**{"device": GPU, "dtype": torch.bfloat16, "width": 64, **changed})


@pytest.mark.parametrize(
    ("changed", "name", "why"),
    [
        ({}, "cuda", None),
        ({"unknown": True, "gradients": True}, "cuda", None),
        ({"width": 32}, "triton", "heads are 32 wide, and there are kernels for 64"),
        ({"dtype": torch.float32}, "triton", "numbers are float32"),
        ({"some_ask": True}, "triton", "only some tokens ask"),
        ({"width": 96}, "varlen", "heads are 96 wide"),
        ({"width": 128, "gradients": True}, "varlen", "heads are 128 wide"),
        ({"width": 128, "gradients": True, "unknown": True}, "sdpa", "heads are 128 wide"),
        ({"dtype": torch.float64}, "sdpa", "numbers are float64"),
    ],
    ids=str,
)
def test_the_first_that_can_on_a_gpu(gpu, changed, name, why):
    choice = backends.choose(call(**changed), "auto")
    assert choice.name == name
    assert (why is None) == (not choice.lacking)
    if why:
        assert why in choice.lacking["cuda"]


def test_an_old_gpu(gpu):
    gpu["capability"] = (7, 5)
    choice = backends.choose(call(), "auto")
    assert choice.name == "triton"
    assert "compute capability 7.5, and 8.0 is needed" in choice.lacking["cuda"]


def test_what_is_not_installed(gpu, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    backends._no_package.cache_clear()
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backends, "_has_varlen", lambda: False)
    choice = backends.choose(call(), "auto")
    backends._no_package.cache_clear()
    assert choice.name == "sdpa"
    assert choice.lacking["cuda"] == "cuda-bindings is not installed: pip install 'cfm-tools[cuda]'"
    assert choice.lacking["triton"].startswith("triton is not installed")
    assert "no torch.nn.attention.varlen" in choice.lacking["varlen"]


def test_no_driver_is_asked_where_torch_finds_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def touched(*_: object) -> None:
        raise AssertionError("this can wait for ever without a driver")

    monkeypatch.setattr(torch.cuda, "get_device_capability", touched)
    choice = backends.choose(call(), "auto")
    assert choice.name == "sdpa"
    assert all("torch finds no GPU" in why for name, why in choice.lacking.items())
    assert list(choice.lacking) == ["cuda", "triton", "varlen"]


def test_what_is_asked_for_comes_first_then_the_order(gpu):
    assert backends.choose(call(), "triton").name == "triton"
    assert backends.choose(call(), "eager").name == "eager"
    assert backends.choose(call(), "sdpa").name == "sdpa"
    choice = backends.choose(call(gradients=True), "triton")
    assert (choice.name, list(choice.lacking)) == ("cuda", ["triton"])


@pytest.mark.parametrize("asked", ["cuda", "triton"])
def test_a_gpu_kernel_on_the_cpu_is_refused(asked, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.zeros(3, 2, 64)
    with cfm.settings.override(attention=asked), pytest.raises(OptionError, match=f"attention='{asked}' runs on a GPU"):
        attention(q, q, q, [0, 3])


def test_nothing_is_said_on_the_cpu(messages):
    q = torch.zeros(3, 2, 64)
    assert cfm.settings.attention == "sdpa", "kernels that no GPU has run are no default"
    for asked in ("sdpa", "auto"):
        with cfm.settings.override(attention=asked):
            attention(q, q, q, [0, 3])
    assert messages == []


def test_a_fall_back_is_said_once(gpu, messages):
    for _ in range(3):
        backends.say(backends.choose(call(width=32), "auto"), "auto")
    assert messages == [
        ("INFO", "attention by triton (the kernel of this package in Triton), not by cuda: heads are 32 wide, and there are "
                 "kernels for 64.")
    ]  # fmt: skip
    backends.say(backends.choose(call(dtype=torch.float32), "cuda"), "cuda")
    assert [level for level, _ in messages] == ["INFO", "WARNING"]


def test_a_backend_that_fails_is_passed_over_from_then_on(monkeypatch, messages):
    tried = []

    def choose(call: backends.Call, asked: str) -> backends.Choice:
        del asked
        why = backends._broken.get(("cuda", call.device))
        return backends.Choice("sdpa", {"cuda": why}) if why else backends.Choice("cuda")

    real = nn_attention._by

    def by(backend: str, *given):
        tried.append(backend)
        if backend == "cuda":
            raise KernelError("varlen_fwd does not compile")
        return real(backend, *given)

    monkeypatch.setattr(backends, "choose", choose)
    monkeypatch.setattr(nn_attention, "_by", by)
    q = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        assert attention(q, q, q, [0, 3]).isfinite().all()
    assert tried == ["cuda", "sdpa", "sdpa"]
    assert [said for level, said in messages if level != "DEBUG"] == [
        "attention by sdpa (torch's attention, cell by cell), not by cuda: varlen_fwd does not compile."
    ]


@pytest.mark.parametrize("n_known", [None, [2, 0, 4]], ids=str)
def test_the_reference_agrees(n_known):
    q, k, v = torch.randn(12, 3, 2, 16, generator=torch.Generator().manual_seed(0)).unbind(1)
    found = []
    for name in ("auto", "sdpa", "eager"):
        with cfm.settings.override(attention=name):
            found.append(attention(q, k, v, [0, 5, 5, 12], n_known=None if n_known is None else [2, 0, 4]))
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[1], atol=2e-6, rtol=0)


def test_half_precision_of_autocast_reaches_attention():
    q = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, q, q, [0, 5]).dtype == torch.bfloat16
        assert attention(q, q, q, [0, 5], n_known=[2]).dtype == torch.bfloat16


def test_compilers_are_loaded_when_they_are_used_and_not_before():
    code = (
        "import sys, torch, cfm, cfm.nn.attention as a, cfm.kernels.cache, cfm.kernels.backends\n"
        "q = torch.zeros(3, 2, 64); a.attention(q, q, q, [0, 3])\n"
        "print([name for name in ('triton', 'cuda.bindings.nvrtc', 'torch._dynamo') if name in sys.modules])\n"
        "import cfm.kernels.compiler as c; print(c.missing()); print('cuda.bindings.nvrtc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "[]"
    assert done.stdout.splitlines()[2] == "False"


def test_the_room_does_not_load_torch():
    code = "import sys, cfm.kernels, cfm.kernels.cache, cfm.kernels.sources; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
