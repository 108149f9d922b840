"""``cfm embed``, ``annotate``, ``tokenize`` and ``enhance``: a file in, the same file with results out."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .options import (
    add_command,
    add_device,
    add_key,
    add_model,
    add_option,
    add_output,
    add_reading,
    finish,
    positive,
)
from .tables import columns, labels_found, pairs

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from .options import Commands

READING = ("model", "layer", "gene_column", "species", "gene_table", "key_added")


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    _add_embed(commands)
    _add_annotate(commands)
    _add_tokenize(commands)
    _add_enhance(commands)


def _add_embed(commands: Commands) -> None:
    parser = add_command(
        commands,
        "embed",
        _embed,
        summary="give each cell a vector",
        description="""\
Give each cell a vector from a model: obsm["X_cfm"], and the number of genes that the model read in
obs["cfm_n_genes"]. The counts are read in pieces, so files larger than memory work. Go on with
sc.pp.neighbors(adata, use_rep="X_cfm").""",
        examples="""\
  cfm embed cells.h5ad -o embedded.h5ad
  cfm embed cells.zarr --inplace
  cfm embed mouse.h5ad -o embedded.h5ad --species mouse --layer counts
  cfm embed cells.h5ad -o embedded.h5ad --model my_model/ --key-added X_mine""",
    )
    add_cells(parser)
    parser.add_argument("--genes", nargs="?", const="static", choices=("static", "contextual"), default=False,
                        help='also a vector for each gene: varm["cfm_genes"]; contextual ones are means over the cells')  # fmt: skip
    parser.add_argument("--tokens", metavar="KEY", help="key in obsm where `cfm tokenize` left tokens to start from")
    add_model(parser)
    add_option(parser)
    add_device(parser)
    add_key(parser, "X_cfm")
    add_output(parser)
    add_reading(parser)
    finish(parser)


def _add_annotate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "annotate",
        _annotate,
        summary="give each cell a label",
        description="""\
Label each cell by its nearest labelled cells in the space of a model: obs["cfm_label"], with the share of the
neighbours that agree in obs["cfm_label_confidence"] and the vectors in obsm["X_cfm"]. A cell that is too far from
all of them is "unknown". Without --reference the labelled cells that come with the model are used; `cfm info MODEL`
lists their labels.""",
        examples="""\
  cfm annotate cells.h5ad -o labelled.h5ad
  cfm annotate cells.h5ad -o labelled.h5ad --reference atlas.h5ad --labels-key cell_type""",
    )
    add_cells(parser)
    parser.add_argument("--reference", type=Path, metavar="FILE", help="your own labelled cells, h5ad or zarr")
    parser.add_argument("--labels-key", metavar="COLUMN", help="column of obs with the labels, in the reference")
    parser.add_argument("--n-neighbors", type=positive, default=15, metavar="N",
                        help="labelled cells that vote, with --reference (default: %(default)s)")  # fmt: skip
    add_model(parser)
    add_option(parser)
    add_device(parser)
    add_key(parser, "cfm_label")
    add_output(parser)
    add_reading(parser)
    finish(parser)


def _add_tokenize(commands: Commands) -> None:
    parser = add_command(
        commands,
        "tokenize",
        _tokenize,
        summary="turn each cell into the tokens that a model reads",
        description="""\
Turn each cell into the tokens that a model reads: obsm["cfm_tokens"] (column = position, value = token), the value
beside each token in obsm["cfm_values"] for models that have values, and their number in obs["cfm_n_tokens"]. For
looking at what a model sees, and for embedding the same cells several times. `cfm embed` needs no such step.""",
        examples="""\
  cfm tokenize cells.h5ad -o tokens.h5ad
  cfm embed tokens.h5ad --inplace --tokens cfm_tokens""",
    )
    add_cells(parser)
    add_model(parser)
    add_option(parser)
    add_key(parser, "cfm_tokens")
    add_output(parser)
    add_reading(parser)
    finish(parser)


def _add_enhance(commands: Commands) -> None:
    parser = add_command(
        commands,
        "enhance",
        _enhance,
        summary="predict what each cell would express if it were sequenced deeper",
        description="""\
Predict what each cell would express if it were sequenced deeper: layers["cfm_enhanced"], logarithms of counts per ten
thousand for each gene that the model knows and NaN for the others, which var["cfm_enhanced"] tells apart. The layer is
dense: 100,000 cells and 20,000 genes take 8 GB. It needs a model that predicts expression, such as scFoundation.""",
        examples="""\
  cfm enhance cells.h5ad -o enhanced.h5ad --model ~/Downloads/scFoundation
  cfm enhance cells.h5ad -o enhanced.h5ad --model scfoundation --depth t4.5""",
    )
    add_cells(parser)
    parser.add_argument("--depth", default="f5", metavar="DEPTH",
                        help="counts to reach: f5, five times those of the cell; a1, 10^1 times; t4, 10^4 in every cell "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--model", required=True, metavar="MODEL",
                        help="a name that `cfm models` lists, or a folder with a checkpoint")  # fmt: skip
    add_option(parser)
    add_device(parser)
    add_key(parser, "cfm_enhanced")
    add_output(parser)
    add_reading(parser)
    finish(parser)


def add_cells(parser: argparse.ArgumentParser) -> None:
    """Take the file of cells."""
    parser.add_argument("cells", type=Path, metavar="CELLS", help="h5ad file or zarr folder with raw counts")


def _embed(args: argparse.Namespace) -> None:
    from cfm.tl import embed

    options = given_options(args, *READING, "tokens", "genes", "device")
    process(args, lambda adata: embed(adata, **options), obsm=args.tokens is not None)


def _annotate(args: argparse.Namespace) -> None:
    import pandas as pd

    from cfm.tl import annotate

    from .reading import open_cells

    options = given_options(args, *READING, "labels_key", "n_neighbors", "device")
    with contextlib.ExitStack() as stack:
        if args.reference is not None:
            options["reference"] = stack.enter_context(open_cells(args.reference, obs=True))
        results = process(args, lambda adata: annotate(adata, **options))
    key = args.key_added or "cfm_label"
    print()
    print(columns(labels_found(*(pd.Series(results.obs[name]) for name in (key, f"{key}_confidence")))))


def _tokenize(args: argparse.Namespace) -> None:
    from cfm.pp import tokenize

    options = given_options(args, *READING)
    process(args, lambda adata: tokenize(adata, **options))


def _enhance(args: argparse.Namespace) -> None:
    from cfm.tl import enhance

    options = given_options(args, *READING, "depth", "device")
    process(args, lambda adata: enhance(adata, **options))


def given_options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Arguments of the function by name, with the options of the model."""
    from cfm._core.errors import OptionError

    given = {name: getattr(args, name) for name in names}
    if taken := [name for name, _ in args.option if name in given or name in ("adata", "copy", "reference")]:
        raise OptionError(f"--option {taken[0]}=: no option of a model is called so; it is an argument of the command.")
    return given | dict(args.option)


def process(
    args: argparse.Namespace, work: Callable[[AnnData], object], *, obsm: bool = False, obs: bool = False
) -> AnnData:
    """Open, work, write, and say what was written."""
    from .reading import open_cells
    from .writing import SLOTS, choose_target, write_results

    target = choose_target(args.cells, None if args.inplace else args.output, overwrite=args.overwrite)
    # Options may name columns of obs.
    with open_cells(args.cells, obsm=obsm, obs=obs or bool(args.option)) as adata:
        given = {slot: dict(getattr(adata, slot)) for slot in ("obsm", "layers")}
        cells, genes = (cast("pd.DataFrame", frame).copy() for frame in (adata.obs, adata.var))
        work(adata)
        after = cast("pd.DataFrame", adata.obs)
        adata.obs, adata.var = _new_columns(after, cells), _new_columns(cast("pd.DataFrame", adata.var), genes)
        for slot, matrices in given.items():
            for key, matrix in matrices.items():
                if key is not None and getattr(adata, slot)[key] is matrix:  # read for the work, not made by it
                    del getattr(adata, slot)[key]
        write_results(args.cells, target, adata)
    written = [(slot, str(key)) for slot in ("obs", "var") for key in getattr(adata, slot).columns]
    written += [(slot, f"{key}, {' x '.join(f'{n:,}' for n in value.shape)}")
                for slot in SLOTS for key, value in getattr(adata, slot).items() if key is not None]  # fmt: skip
    print(pairs(str(args.output or args.cells), written))
    adata.obs = after
    return adata


def _new_columns(after: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """The columns that were not there before, or are others now."""
    return after.drop(columns=[name for name in before if after[name].equals(before[name])])
