"""Settings: checked, taken from the environment, and local for a while."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from pydantic import ValidationError

import cfm
from cfm._core.settings import Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunk_cells", 0),
        ("chunk_cells", "many"),
        ("pack_tokens", -1),
        ("threads", -1),
        ("attention", "fast"),
        ("verbosity", "loud"),
        ("progress", "perhaps"),
        ("offline", "perhaps"),
        ("cache_dir", 3),
    ],
)
def test_wrong_values_are_refused_and_leave_the_old(name: str, value: object) -> None:
    before = getattr(cfm.settings, name)
    with pytest.raises(ValidationError, match=name):
        setattr(cfm.settings, name, value)
    assert getattr(cfm.settings, name) == before


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_sells"):
        cfm.settings.chunk_sells = 3  # type: ignore[attr-defined]


def test_override_is_undone_also_after_an_error() -> None:
    before = cfm.settings.chunk_cells
    with cfm.settings.override(chunk_cells=7, threads=2):
        assert (cfm.settings.chunk_cells, cfm.settings.threads) == (7, 2)
    assert cfm.settings.chunk_cells == before
    with pytest.raises(ZeroDivisionError), cfm.settings.override(chunk_cells=7):
        raise ZeroDivisionError
    assert cfm.settings.chunk_cells == before
    with pytest.raises(ValidationError), cfm.settings.override(chunk_cells=9, threads=-5):
        pass
    assert cfm.settings.chunk_cells == before


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFM_CHUNK_CELLS", "12")
    monkeypatch.setenv("CFM_PROGRESS", "false")
    monkeypatch.setenv("CFM_DEVICE", "cpu")
    made = Settings()
    assert (made.chunk_cells, made.progress, made.device) == (12, False, "cpu")
    assert (made.cache_dir, made.offline) == (None, False)
    monkeypatch.setenv("CFM_CACHE_DIR", "/data/models")
    monkeypatch.setenv("CFM_OFFLINE", "1")
    made = Settings()
    assert (made.cache_dir, made.offline) == (Path("/data/models"), True)
    # As in `CFM_CACHE_DIR= cfm models`: not the folder that Python started in.
    monkeypatch.setenv("CFM_CACHE_DIR", "")
    assert Settings().cache_dir is None
    monkeypatch.setenv("CFM_CHUNK_CELLS", "none")
    with pytest.raises(ValidationError, match="chunk_cells"):
        Settings()


def test_version() -> None:
    assert cfm.__version__ == version("cfm-tools")
