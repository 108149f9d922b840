"""Values that are normalised already, for models that were told to read such."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData

from cfm.counts import find_normalized
from cfm.errors import CountsError, MissingKeyError


def test_x_or_the_layer_that_was_named(few: AnnData, log_normalise: Callable[[AnnData], None]) -> None:
    few.layers["counts"] = few.X.copy()
    log_normalise(few)
    source = find_normalized(few)
    assert source.where == "X"
    read = [chunk.counts.toarray() for chunk in source.chunks(7)]
    np.testing.assert_array_equal(np.concatenate(read), few.X.toarray())
    few.layers["logged"] = few.X.copy()
    assert find_normalized(few, layer="logged").where == "layers['logged']"
    with pytest.raises(MissingKeyError, match="adata.layers has no 'log'"):
        find_normalized(few, layer="log")


def test_counts_are_refused(few: AnnData) -> None:
    with pytest.raises(CountsError, match="X holds counts, and the model was told to take normalised values"):
        find_normalized(few)


def test_there_may_be_no_x(few: AnnData) -> None:
    with pytest.raises(CountsError, match="There is no X. Name the layer"):
        find_normalized(AnnData(obs=few.obs, var=few.var))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_values_that_cannot_be(few: AnnData, log_normalise: Callable[[AnnData], None], bad: float) -> None:
    log_normalise(few)
    few.X.data[0] = bad
    with pytest.raises(CountsError, match="holds no normalised values in cells 0 to 9"):
        next(find_normalized(few).chunks(10))
