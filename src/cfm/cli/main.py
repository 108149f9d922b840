"""From the command line to an exit code."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from cfm._core.errors import CfmError
from cfm._core.logging import logger

from . import demo, info, integrate, kernels, pretrain, process
from .options import Formatter, add_common
from .session import session

INTERRUPTED = 130

_DESCRIPTION = """\
Cell foundation models on the command line: give cells vectors and labels, and write them to a new file beside the
raw counts. The counts and the gene names are found by looking at the file; what was found is logged, and recorded in
the output under uns["cfm"]. The default model, cfm-mini, comes with the package, so all of this works offline."""

_EPILOG = """\
examples:
  cfm demo                                         see it work on 700 blood cells; nothing to download
  cfm annotate cells.h5ad -o labelled.h5ad         a label, a confidence and a vector for every cell
  cfm embed cells.zarr -o embedded.zarr            vectors only
  cfm info labelled.h5ad                           what cfm found in a file, and what it wrote there

Every command explains itself: cfm annotate --help.
Results go to standard output, messages and progress to standard error.
Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 130 stopped with Ctrl-C."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Building it imports nothing heavy: ``cfm --help`` answers at once."""
    parser = argparse.ArgumentParser("cfm", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=Formatter)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    add_common(parser, top=True)
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    demo.add_command(commands)
    process.add_commands(commands)
    integrate.add_commands(commands)
    pretrain.add_command(commands)
    info.add_commands(commands)
    kernels.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        Arguments after the name of the program; None takes those of the process.

    Returns
    -------
    Exit code: 0 done, 1 an error that a message on standard error explains, 2 no command, 130 stopped with Ctrl-C.
    Wrong usage and ``--help`` leave through `SystemExit`, as `argparse` does, with 2 and 0.

    Examples
    --------
    >>> from cfm.cli import main
    >>> main(["models"])
    name      family  species ...
    cfm-mini  mini    human ...
    0
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        with session(args):
            args.run(args)
    except CfmError as error:
        logger.debug("where it happened", exc_info=error)
        return _fail(f"{error}{_as_options(str(error), args)}")
    except OSError as error:  # no permission, disk full, damaged file: the system's message says which
        logger.debug("where it happened", exc_info=error)
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped", INTERRUPTED)
    except SystemExit as stop:
        # Lightning ends a training that is interrupted with an exit of its own.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _fail("stopped", INTERRUPTED)
        raise
    return 0


class _Version(argparse.Action):
    """Reads the version when it is asked for, not whenever the parser is built."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"cfm-tools {version('cfm-tools')}")
        parser.exit()


def _fail(message: str, code: int = 1) -> int:
    print(f"cfm: {'error: ' if code == 1 else ''}{message}", file=sys.stderr)
    return code


def _as_options(message: str, args: argparse.Namespace) -> str:
    """Errors name Python's arguments; this says what they are called here."""
    named = [name for name in dict.fromkeys(re.findall(r"\b([a-z_]+)=", message)) if name in args.options]
    if not named and "option" in args.options and re.search(r"\b[a-z_]+=", message):
        return "\nOn the command line, an option NAME= of a model is --option NAME=VALUE."
    if not named:
        return ""
    return f"\nOn the command line: {', '.join(f'{name}= is --{name.replace("_", "-")}' for name in named)}."
