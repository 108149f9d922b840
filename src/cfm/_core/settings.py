"""User settings, validated on assignment and readable from ``CFM_*`` environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
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

    attention: Literal["auto", "cuda", "triton", "sdpa", "eager"] = "sdpa"
    """What computes attention: torch's own, cell by cell, until the kernels of this package have run on a GPU.
    ``"auto"`` takes the first that can: on a GPU the kernels of this package, Triton, torch's
    own for ragged cells, ``scaled_dot_product_attention`` cell by cell; on the CPU the last. ``"eager"`` is the formula
    written out, to compare with. ``cfm kernels explain`` says what is taken, and what the others lack."""

    chunk_cells: Annotated[int, Field(gt=0)] = 2048
    """Cells read from storage at a time. It bounds memory and never changes a result."""

    pack_tokens: Annotated[int, Field(gt=0)] = 16_384
    """Tokens that go through a model at a time. It bounds memory and never changes a result."""

    threads: Annotated[int, Field(ge=0)] = 0
    """Threads that tokenise. 0 takes all the cores this process may use."""

    # An empty variable in the environment is one that is not set, and not the folder that Python started in.
    cache_dir: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = None
    """Where downloaded models are kept. None takes the folder for caches of the system: on Linux ``~/.cache/cfm``."""

    offline: bool = False
    """Whether to leave the network alone: a model that is not in the cache is an error that says what is missing."""


settings = Settings()
