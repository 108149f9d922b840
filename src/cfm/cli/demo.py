"""``cfm demo``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_command as command
from .options import add_device, finish
from .tables import columns, pairs

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from .options import Commands

NAME = "cfm_demo"
_TRUTH = "cell_type"

_CAVEAT = """\
The known labels were made by comparing each cell with sorted blood populations, and cfm-mini was trained on those
sorted populations. So the accuracy is a demonstration, not a test. Most dendritic cells are called monocytes: the
training sets hold few of them from blood."""


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "demo",
        _demo,
        summary="embed and label real blood cells; nothing to download",
        description=f"""\
Embed and label the 700 blood cells of cfm.datasets.pbmc68k() with cfm-mini, go on with scanpy's neighbors and UMAP,
print a short table, and write {NAME}.h5ad and {NAME}.png (files of these names are replaced). Nothing is downloaded.""",
        examples=f"""\
  cfm demo
  cfm demo --output-folder results
  cfm info {NAME}.h5ad""",
    )
    parser.add_argument("--output-folder", type=Path, default=Path(), metavar="FOLDER", help="default: this folder")
    add_device(parser)
    finish(parser)


def _demo(args: argparse.Namespace) -> None:
    from cfm._core.resources import atomic_path

    from .demo_figure import figure_of

    start = time.perf_counter()
    adata = _labelled(args.device)
    labelled = time.perf_counter()
    _laid_out(adata)
    laid_out = time.perf_counter()
    table, picture = args.output_folder / f"{NAME}.h5ad", args.output_folder / f"{NAME}.png"
    figure = figure_of(adata, ours="cfm_label", known=_TRUTH)
    with atomic_path(table) as path:
        adata.write_h5ad(path)
    with atomic_path(picture) as path:
        figure.savefig(path, dpi=150)
    rows = [
        *_facts(adata),
        ("seconds", f"{labelled - start:.1f} to embed and label, {laid_out - labelled:.1f} for neighbors and UMAP"),
        ("written", f"{table}, {picture}"),
    ]
    print(pairs("cfm-mini on the blood cells of cfm.datasets.pbmc68k()", rows))
    print()
    print(columns(_by_label(adata)))
    print()
    print(_CAVEAT)


def _labelled(device: str | None) -> AnnData:
    from cfm.datasets import pbmc68k
    from cfm.tl import annotate

    adata = pbmc68k()
    annotate(adata, device=device)  # embeds too
    return adata


def _laid_out(adata: AnnData) -> None:
    import scanpy as sc

    sc.pp.neighbors(adata, use_rep="X_cfm")
    sc.tl.umap(adata)


def _facts(adata: AnnData) -> list[tuple[str, str]]:
    coverage = adata.uns["cfm"]["X_cfm"]["coverage"]
    agree = (_text(adata, "cfm_label") == _text(adata, _TRUTH)).mean()
    unknown = (adata.obs["cfm_label"] == "unknown").sum()
    found = adata.obs["cfm_label"].nunique() - (unknown > 0)
    return [
        ("cells", f"{adata.n_obs:,}"),
        ("genes matched", f"{coverage['n_matched']:,} of {coverage['n_genes']:,}"),
        ("share of counts", f"{coverage['share_of_counts']:.1%}"),
        ("labels found", f"{found}"),
        ("unknown cells", f"{unknown:,}"),
        ("accuracy", f"{agree:.1%} of all cells, against the known labels"),
    ]


def _by_label(adata: AnnData) -> list[tuple[str, ...]]:
    """For each known label: its cells, those that cfm gave the same label, and the label that it gave most often."""
    ours, known = _text(adata, "cfm_label"), _text(adata, _TRUTH)
    rows: list[tuple[str, ...]] = [("known label", "cells", "agree", "most often labelled")]
    for label, number in known.value_counts().items():
        mine = ours[known == label]
        rows.append((str(label), f"{number:,}", f"{(mine == label).mean():.0%}", str(mine.value_counts().index[0])))
    return rows


def _text(adata: AnnData, key: str) -> pd.Series:
    import pandas as pd

    return pd.Series(adata.obs[key]).astype(str)
