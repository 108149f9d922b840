from __future__ import annotations

import numpy as np
import pandas as pd

from cfm.cli.tables import columns, labels_found, pairs


def test_pairs_line_up():
    assert pairs("title", [("a", "1"), ("long", "2"), ("b", "")]) == "title\n  a     1\n  long  2\n  b"


def test_columns_line_up():
    assert columns([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


def test_labels_with_their_mean_confidence():
    labels = pd.Series(pd.Categorical(["b", "a", "a"], categories=["a", "b", "c"]))
    confidence = pd.Series(np.array([0.5, 0.25, 0.75], np.float32))
    assert labels_found(labels, confidence) == [
        ("label", "cells", "mean confidence"),
        ("a", "2", "0.50"),
        ("b", "1", "0.50"),
    ]
    assert labels_found(labels) == [("label", "cells"), ("a", "2"), ("b", "1")]
