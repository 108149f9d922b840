"""User settings, validated on assignment and readable from ``CFM_*`` environment variables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from scverse_misc import Settings as _ScverseSettings


class Settings(_ScverseSettings):
    """How `cfm` behaves where no argument of a call decides.

    Examples
    --------
    >>> import cfm
    >>> with cfm.settings.override(progress=False, chunk_cells=1024):
    ...     cfm.settings.chunk_cells
    1024
    """

    verbosity: Literal["error", "warning", "info", "debug"] = "info"
    """How much the ``cfm`` logger says."""

    progress: bool = True
    """Whether long calls show a progress bar."""

    device: str = "auto"
    """Where models run. ``"auto"`` is CUDA when there is one, else CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``..."""

    chunk_cells: Annotated[int, Field(gt=0)] = 2048
    """Cells read from storage at a time. It bounds memory and never changes a result."""

    pack_tokens: Annotated[int, Field(gt=0)] = 65_536
    """Tokens that go through a model at a time. It bounds memory and never changes a result."""

    threads: Annotated[int, Field(ge=0)] = 0
    """Threads that tokenise. 0 takes all the cores this process may use."""


settings = Settings()
