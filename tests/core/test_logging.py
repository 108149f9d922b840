"""What the user sees of the logger and the progress bars."""

from __future__ import annotations

import logging

import pytest

import cfm
from cfm._core.logging import _set_up, _TqdmHandler, logger, progress


@pytest.mark.parametrize(
    ("verbosity", "seen"),
    [("error", "e"), ("warning", "we"), ("info", "iwe"), ("debug", "diwe")],
)
def test_verbosity(verbosity: str, seen: str, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_handler_of_the_user_does_not_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a program that sets up its logging before it calls us.
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    _set_up()
    _set_up()
    assert [type(handler) for handler in logger.handlers] == [logging.NullHandler, _TqdmHandler]
    assert logger.level == logging.DEBUG
