"""What the user sees of the logger and the progress bars."""

from __future__ import annotations

import sys

import pytest

import cfm
from cfm._core.logging import _TqdmHandler, logger, progress


@pytest.mark.parametrize(
    ("verbosity", "seen"),
    [("error", "e"), ("warning", "we"), ("info", "iwe"), ("debug", "diwe")],
)
def test_verbosity(
    verbosity: str, seen: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (handler,) = (handler for handler in logger.handlers if isinstance(handler, _TqdmHandler))
    monkeypatch.setattr(handler, "stream", sys.stderr)  # the one that is captured now
    with cfm.settings.override(verbosity=verbosity):
        for name in ("debug", "info", "warning", "error"):
            getattr(logger, name)("%s", name[0])
    shown = capsys.readouterr()
    assert shown.err == "".join(f"cfm: {letter}\n" for letter in seen)
    assert shown.out == ""


def test_progress_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10, "cells") as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    with cfm.settings.override(progress=True), progress(10, "reading") as bar:
        bar.update(10)
    shown = capsys.readouterr().err
    assert "reading: 100%" in shown
    assert "cells/s" in shown
