"""Options that several commands share, named like the arguments of the functions."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Formatter = argparse.RawDescriptionHelpFormatter


def add_common(parser: argparse.ArgumentParser, *, top: bool = False) -> None:
    """Options that are understood before and after the name of a command.

    Parameters
    ----------
    parser
        The parser that gets them.
    top
        Whether this is the parser of ``cfm`` itself. The parser of a command keeps silent about an option that it
        was not given, or it would undo the one before the command.
    """

    def default(value: object) -> Any:
        return value if top else argparse.SUPPRESS

    group = parser.add_argument_group("messages and resources")
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", "-q", action="store_true", default=default(False),
                          help="warnings and errors only, no progress bar")  # fmt: skip
    loudness.add_argument("--verbose", "-v", action="store_true", default=default(False),
                          help="everything, and where in the code an error came from")  # fmt: skip
    group.add_argument("--no-progress", action="store_true", default=default(False),
                       help="no progress bar (there is none either where standard error is no terminal)")  # fmt: skip
    group.add_argument("--threads", type=positive, metavar="N", default=default(None),
                       help="cores to use (default: all that this process may use)")  # fmt: skip


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    *,
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    """A command with its help; the common options are added by `finish`."""
    parser = commands.add_parser(
        name, help=summary, description=description, epilog=f"examples:\n{examples}", formatter_class=Formatter
    )
    parser.set_defaults(run=run)
    return parser


def finish(parser: argparse.ArgumentParser) -> None:
    """Add the common options last, and note the command's own ones: messages translate Python's names to them."""
    own = {action.dest for action in parser._actions if any(o.startswith("--") for o in action.option_strings)}
    parser.set_defaults(options=frozenset(own - {"help"}))
    add_common(parser)


def add_model(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--model``."""
    group.add_argument("--model", default="cfm-mini", metavar="MODEL",
                       help="a name that `cfm models` lists, or a folder with a checkpoint (default: %(default)s)")  # fmt: skip


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--option``, for what only some models have."""
    parser.add_argument("--option", type=_pair, action="append", default=[], metavar="NAME=VALUE",
                        help="an option of the model's family, such as emb_layer=0; may be given several times")  # fmt: skip


def add_device(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--device``."""
    group.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1... (default: auto)")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Where counts and genes are, for files in which looking does not find them."""
    group = parser.add_argument_group("reading the cells (found by looking where not given)")
    group.add_argument("--layer", metavar="NAME", help="layer with the raw counts; X takes X")
    group.add_argument("--gene-column", metavar="NAME",
                       help="column of var with symbols or Ensembl ids; var_names takes the index")  # fmt: skip
    group.add_argument("--species", metavar="NAME",
                       help="species of the data; mouse reads mouse symbols through one-to-one orthologs")  # fmt: skip
    group.add_argument("--gene-table", type=Path, metavar="FILE",
                       help="your own table of two columns: name in the data, human symbol or Ensembl id")  # fmt: skip


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    group = parser.add_argument_group("output (one of -o and --inplace is needed)")
    where = group.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--output", type=Path, metavar="FILE",
                       help="new file: all of the input and the results, in the format of the input")  # fmt: skip
    where.add_argument("--inplace", action="store_true", help="add the results to the input file")
    group.add_argument("--overwrite", action="store_true", help="replace an output that exists")


def add_key(parser: argparse.ArgumentParser, default: str) -> None:
    """``--key-added``."""
    parser.add_argument("--key-added", type=_key, metavar="KEY", help=f"key of the results (default: {default})")


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return number


def _pair(text: str) -> tuple[str, int | float | str]:
    name, sign, value = text.partition("=")
    if not name.isidentifier() or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value


def kind_and_name(text: str) -> tuple[str, str]:
    """``KIND=NAME``, for what differs by modality."""
    kind, sign, name = text.partition("=")
    if not (kind and sign and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KIND=NAME, such as protein=adt")
    return kind, name


def _key(text: str) -> str:
    if "/" in text or not text:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be a key: h5ad and zarr take '/' for a folder")
    return text
