"""``cfm integrate``: a file of one modality or of several in, the same file with one space out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from .process import READING, given_options, process
from .tables import pairs

if TYPE_CHECKING:
    from .options import Commands


def add_commands(commands: Commands) -> None:
    """Add the command."""
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
    parser.add_argument(
        "--species-key", metavar="COLUMN", help="column of obs with human and mouse, if there are cells of both"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for all that is drawn (default: %(default)s)")
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


def _integrate(args: argparse.Namespace) -> None:
    from cfm.tl import integrate

    from .reading import kind_of

    for name in ("modalities", "layers"):
        setattr(args, name, _by_kind(name, getattr(args, name)))
    options = given_options(args, *READING, "batch_key", "condition_key", "species_key", "seed", "method", "use_rep", "device", "epochs", "save",
                     "reference", "impute", "modalities", "layers")  # fmt: skip
    if kind_of(args.cells, several=True) == "h5mu":
        _process_modalities(args, lambda mdata: integrate(mdata, **options))
    else:
        process(args, lambda adata: integrate(adata, **options), obsm=args.use_rep is not None, obs=True)


def _by_kind(name: str, given: list[tuple[str, str]] | None) -> dict[str, str] | None:
    from cfm._core.errors import OptionError

    if given is not None and len(dict(given)) < len(given):
        raise OptionError(
            f"--{name} names a kind twice: {' '.join('='.join(pair) for pair in given)}. Give each kind once."
        )
    return None if given is None else dict(given)


def _process_modalities(args: argparse.Namespace, work: Callable[[Any], object]) -> None:
    """`process` of an h5mu file, which is read whole."""
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
