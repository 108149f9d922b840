"""``cfm pretrain``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_command as command
from .options import add_device, finish, positive
from .tables import pairs

if TYPE_CHECKING:
    from .options import Commands


def add_command(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "pretrain",
        _pretrain,
        summary="train a model on your own cells",
        description="""\
Train a masked-gene model of the cfm-mini form, on the files that a recipe names or on your own, and write it to a
folder that every command takes as --model. The recipe is a TOML file with all hyper-parameters; without one, that of
cfm-mini is used. A run that was stopped goes on from its last epoch when the same command is typed again.""",
        examples="""\
  cfm pretrain config.toml                                  the files that the recipe names
  cfm pretrain config.toml --data folder/ -o my_model       the same, where the files lie in another folder
  cfm pretrain --data a.h5ad b.h5ad -o my_model --labels-key cell_type
  cfm embed cells.h5ad -o embedded.h5ad --model my_model""",
    )
    parser.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE", help="TOML file (default: that of cfm-mini)")
    parser.add_argument("--data", type=Path, nargs="+", metavar="PATH",
                        help="folder of the files that the recipe names, or your own h5ad files")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER",
                        help="folder for the model (default: the name of the recipe without .toml)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something else")
    parser.add_argument("--labels-key", metavar="COLUMN", help="column of obs with labels, in your own files")
    parser.add_argument("--species", default="human", metavar="NAME", help="species of your own files: human or mouse")
    parser.add_argument("--epochs", type=positive, metavar="N", help="most epochs, instead of the recipe's")
    add_device(parser)
    finish(parser)


def _pretrain(args: argparse.Namespace) -> None:
    from cfm._core.errors import OptionError
    from cfm._core.settings import settings
    from cfm.tl import pretrain

    if args.recipe is None and args.data is None:
        raise OptionError("Which cells? Type a recipe that names files, or --data FILE.h5ad; cfm pretrain --help.")
    if args.recipe is not None and args.recipe.suffix in {".h5ad", ".zarr"}:
        raise OptionError(f"{args.recipe} holds cells and is no recipe. Type --data {args.recipe}")
    output = args.output or Path(args.recipe.stem if args.recipe is not None else "cfm-pretrained")
    _require_free(output, args.overwrite)
    is_root = args.data is not None and len(args.data) == 1 and args.data[0].is_dir()
    with settings.override(device=args.device or settings.device):
        try:
            folder = pretrain(
                None if is_root else args.data,
                output,
                recipe=args.recipe,
                data_root=args.data[0] if is_root else None,
                labels_key=args.labels_key,
                species=args.species,
                epochs=args.epochs,
            )
        except (KeyboardInterrupt, SystemExit):  # Lightning makes an exit of Ctrl-C
            print("cfm: type the same command again to go on from the last epoch", file=sys.stderr)
            raise
    print(pairs(str(folder), [("next", f"cfm info {folder}"), ("", f"cfm embed CELLS -o OUTPUT --model {folder}")]))


def _require_free(folder: Path, overwrite: bool) -> None:
    """A folder that exists has to hold a run to go on with; `cfm.tl.pretrain` checks that it is the same run."""
    from cfm._core.errors import OptionError

    if folder.is_file():
        raise OptionError(f"{folder} is a file, and a model is a folder. Type another name after -o.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "run").is_dir() and not overwrite:
        raise OptionError(
            f"{folder} exists and holds no run to go on with. Type --overwrite, or another name after -o."
        )
