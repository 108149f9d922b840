"""``cfm embed``, ``annotate``, ``integrate``, ``tokenize`` and ``enhance``: a file in, the same file with results out."""

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
    kind_and_name,
    positive,
)
from .tables import columns, labels_found, pairs

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from .options import Commands

_READING = ("model", "layer", "gene_column", "species", "gene_table", "key_added")


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    _add_embed(commands)
    _add_annotate(commands)
    _add_integrate(commands)
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
    _add_cells(parser)
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
    _add_cells(parser)
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


def _add_integrate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "integrate",
        _integrate,
        summary="put cells of several batches, or of several modalities, into one space",
        description="""\
Put cells of several batches into one space, in which like cells lie together: obsm["X_cfm_integrated"]. What is special about
a batch is taken out, be it chemistry or biology; a condition that batches differ in stays if it is named. All counts are
held in memory. Go on with sc.pp.neighbors(adata, use_rep="X_cfm_integrated").
An h5mu file of RNA, proteins or ATAC peaks gets one space of all modalities, obsm["X_cfm_joint"], and the share of each in
obsm["cfm_modality_weights"]; cells in which only some were measured are welcome, and batches are optional.""",
        examples="""\
  cfm integrate cells.h5ad -o integrated.h5ad --batch-key donor
  cfm integrate cells.h5ad -o integrated.h5ad --batch-key donor --condition-key disease
  cfm integrate cells.h5ad -o integrated.h5ad --batch-key donor --method scvi --save my_space
  cfm integrate later.h5ad -o placed.h5ad --batch-key donor --reference my_space
  cfm integrate cells.h5mu -o joint.h5mu --impute protein
  cfm integrate cells.h5mu -o joint.h5mu --modalities rna=gex protein=adt --batch-key donor""",
    )
    parser.add_argument("cells", type=Path, metavar="CELLS", help="h5ad file, zarr folder or h5mu file with raw counts")
    parser.add_argument("--batch-key", metavar="COLUMN",
                        help="column of obs with the batch; only an h5mu file can do without")  # fmt: skip
    parser.add_argument("--condition-key", metavar="COLUMN", help="column of obs whose differences are to stay")
    parser.add_argument("--method", choices=("auto", "harmony", "scgpt", "scvi", "zero_shot"), default="auto",
                        help="Harmony on components of the counts and the model's vectors, on the vectors alone; scvi trains a "
                        "network, scgpt fine-tunes a checkpoint of scGPT; or the vectors as they are (default: %(default)s, which for h5mu is scvi)")  # fmt: skip
    parser.add_argument("--use-rep", metavar="KEY", help="key in obsm with vectors to take in the place of a model's")
    group = parser.add_argument_group("training (--method scvi or scgpt, and h5mu files)")
    group.add_argument("--epochs", type=positive, metavar="N",
                       help="times through all cells (default: by the number of cells)")  # fmt: skip
    group.add_argument("--save", type=Path, metavar="FOLDER",
                       help="keep the trained model here; a run that was stopped goes on with the same command")  # fmt: skip
    group.add_argument("--reference", type=Path, metavar="FOLDER",
                       help="put the cells into the space of such a model, which stays as it is")  # fmt: skip
    group.add_argument("--impute", nargs="+", choices=("rna", "protein", "atac"), default=(), metavar="KIND",
                       help='predict these modalities, rna, protein or atac: layers["cfm_imputed"] and "cfm_imputed_sd"')  # fmt: skip
    group = parser.add_argument_group("modalities (h5mu files)")
    group.add_argument("--modalities", nargs="+", type=kind_and_name, metavar="KIND=NAME",
                       help="which modality is what, where names do not tell: rna=gex protein=adt atac=peaks")  # fmt: skip
    group.add_argument("--layers", nargs="+", type=kind_and_name, metavar="KIND=NAME",
                       help="layer with the counts of a modality: protein=counts")  # fmt: skip
    add_model(parser)
    add_option(parser)
    add_device(parser)
    add_key(parser, "X_cfm_integrated, or X_cfm_joint of an h5mu file")
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
    _add_cells(parser)
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
    _add_cells(parser)
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


def _add_cells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cells", type=Path, metavar="CELLS", help="h5ad file or zarr folder with raw counts")


def _embed(args: argparse.Namespace) -> None:
    from cfm.tl import embed

    options = _given(args, *_READING, "tokens", "genes", "device")
    _process(args, lambda adata: embed(adata, **options), obsm=args.tokens is not None)


def _annotate(args: argparse.Namespace) -> None:
    import pandas as pd

    from cfm.tl import annotate

    from .reading import open_cells

    options = _given(args, *_READING, "labels_key", "n_neighbors", "device")
    with contextlib.ExitStack() as stack:
        if args.reference is not None:
            options["reference"] = stack.enter_context(open_cells(args.reference, obs=True))
        results = _process(args, lambda adata: annotate(adata, **options))
    key = args.key_added or "cfm_label"
    print()
    print(columns(labels_found(*(pd.Series(results.obs[name]) for name in (key, f"{key}_confidence")))))


def _integrate(args: argparse.Namespace) -> None:
    from cfm.tl import integrate

    from .reading import kind_of

    for name in ("modalities", "layers"):
        setattr(args, name, _by_kind(name, getattr(args, name)))
    options = _given(args, *_READING, "batch_key", "condition_key", "method", "use_rep", "device", "epochs", "save",
                     "reference", "impute", "modalities", "layers")  # fmt: skip
    if kind_of(args.cells, several=True) == "h5mu":
        _process_modalities(args, lambda mdata: integrate(mdata, **options))
    else:
        _process(args, lambda adata: integrate(adata, **options), obsm=args.use_rep is not None, obs=True)


def _by_kind(name: str, given: list[tuple[str, str]] | None) -> dict[str, str] | None:
    from cfm._core.errors import OptionError

    if given is not None and len(dict(given)) < len(given):
        raise OptionError(
            f"--{name} names a kind twice: {' '.join('='.join(pair) for pair in given)}. Give each kind once."
        )
    return None if given is None else dict(given)


def _tokenize(args: argparse.Namespace) -> None:
    from cfm.pp import tokenize

    options = _given(args, *_READING)
    _process(args, lambda adata: tokenize(adata, **options))


def _enhance(args: argparse.Namespace) -> None:
    from cfm.tl import enhance

    options = _given(args, *_READING, "depth", "device")
    _process(args, lambda adata: enhance(adata, **options))


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    from cfm._core.errors import OptionError

    given = {name: getattr(args, name) for name in names}
    if taken := [name for name, _ in args.option if name in given or name in ("adata", "copy", "reference")]:
        raise OptionError(f"--option {taken[0]}=: no option of a model is called so; it is an argument of the command.")
    return given | dict(args.option)


def _process(
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


def _process_modalities(args: argparse.Namespace, work: Callable[[Any], object]) -> None:
    """`_process` of an h5mu file, which is read whole."""
    import mudata

    from cfm._core import records

    from .writing import SLOTS, choose_target, write_modalities

    target = choose_target(args.cells, None if args.inplace else args.output, overwrite=args.overwrite)
    mdata = mudata.read_h5mu(args.cells)
    objects = {"": mdata, **mdata.mod}
    slots = [(place, slot) for place in objects for slot in SLOTS if getattr(objects[place], slot, None) is not None]
    before = {(place, slot): dict(getattr(objects[place], slot)) for place, slot in slots}
    work(mdata)
    results = [
        (place, slot, str(key), value)
        for place, slot in slots
        for key, value in getattr(objects[place], slot).items()
        if key is not None and before[place, slot].get(key) is not value
    ]
    write_modalities(args.cells, target, results, mdata.uns[records.UNS])
    print(pairs(str(args.output or args.cells), [
        (f"{place} {slot}".strip(), f"{key}, {' x '.join(f'{n:,}' for n in value.shape)}")
        for place, slot, key, value in results
    ]))  # fmt: skip


def _new_columns(after: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """The columns that were not there before, or are others now."""
    return after.drop(columns=[name for name in before if after[name].equals(before[name])])
