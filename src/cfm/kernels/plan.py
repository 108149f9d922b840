"""What the operators need to know of a batch's cells, as tensors where they are read, made once for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import check_asking
from .ops import HOST
from .ragged import INT32_MAX, checked_known, checked_offsets, longest, row_tiles


class Plan(NamedTuple):
    """What `cfm.kernels.ops.varlen_attention` takes after the tokens; then the most tokens and queries of a cell."""

    offsets: Tensor
    q_offsets: Tensor | None
    n_known: Tensor | None
    tiles: Tensor | None
    narrow: Tensor | None
    n_wide: int
    max_tokens: int
    max_queries: int


def plan(
    offsets: Sequence[int],
    q_offsets: Sequence[int] | None,
    n_known: Sequence[int] | None,
    n_queries: int,
    n_keys: int,
    device: torch.device,
    backend: str,
) -> Plan:
    """The plan of a batch. On a GPU it stays for the next layers: nothing is copied twice.

    Parameters
    ----------
    offsets, q_offsets, n_known
        As in `cfm.nn.attention.attention`.
    n_queries, n_keys
        Where they have to end.
    device
        Where the tokens are.
    backend
        Who reads it.

    Raises
    ------
    OptionError
        Offsets or known tokens that cannot be.
    """
    if backend in HOST:
        # The operator checks these itself: it has them on the host.
        starts, asking, known = (
            None if x is None else torch.tensor(x, dtype=torch.int64) for x in (offsets, q_offsets, n_known)
        )
        assert starts is not None
        return Plan(starts, asking, known, None, None, 0, 0, 0)
    keys = (tuple(offsets), *(None if x is None else tuple(x) for x in (q_offsets, n_known)))
    # Memory that one stream filled is not ready for another one.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _on_device(*keys, n_queries, n_keys, device, stream)


@lru_cache(maxsize=16)
def _on_device(
    offsets: tuple[int, ...],
    q_offsets: tuple[int, ...] | None,
    n_known: tuple[int, ...] | None,
    n_queries: int,
    n_keys: int,
    device: torch.device,
    stream: int,
) -> Plan:
    del stream
    starts = checked_offsets(offsets, n_keys)
    known = None if n_known is None else checked_known(n_known, starts)
    asking = starts
    if q_offsets is not None:
        asking = checked_offsets(q_offsets, n_queries, "q_offsets")
        check_asking(starts, asking)
    tiles, narrow = row_tiles(asking, known), row_tiles(asking, known, wide_from=INT32_MAX)

    def there(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.int32)).to(device)

    return Plan(
        there(starts),
        None if q_offsets is None else there(asking),
        None if known is None else there(known),
        there(np.stack(tiles[:2])),
        there(np.stack(narrow[:2])),
        tiles.n_wide,
        longest(starts),
        longest(asking),
    )
