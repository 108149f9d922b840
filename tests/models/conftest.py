from __future__ import annotations

import pickle
from pathlib import Path

import pytest


@pytest.fixture
def bomb(tmp_path: Path) -> tuple[bytes, Path]:
    """A pickle that creates a file when it is loaded, and the path of that file."""
    path = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return open, (str(path), "w")

    data = pickle.dumps(Bomb())
    pickle.loads(data).close()
    assert path.exists(), "the bomb works"
    path.unlink()
    return data, path
