"""What the tests of all families share: a bomb, the real cells, and what official code gave for them."""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "data" / "fixtures"


@pytest.fixture
def fixtures(request: pytest.FixtureRequest) -> Path:
    """Folder of a family's checkpoints and of its official numbers; the family is that of the tests' folder."""
    return DATA / request.path.parent.name


@pytest.fixture(scope="session")
def _cells() -> AnnData:
    return ad.read_h5ad(DATA / "cells" / "cells.h5ad")


@pytest.fixture
def cells(_cells: AnnData) -> AnnData:
    """48 real cells, the last two with no gene and with one: a copy of one's own."""
    return _cells.copy()


@pytest.fixture
def official(fixtures: Path) -> dict[str, NDArray[Any]]:
    """What the official code gave, by ``"file/array"``."""
    return dict(_arrays(fixtures))


@lru_cache(maxsize=1)
def _arrays(folder: Path) -> dict[str, NDArray[Any]]:
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            found |= {f"{path.stem}/{name}": arrays[name] for name in arrays.files}
    return found


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
