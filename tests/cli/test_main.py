from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import cfm
from cfm._core.errors import OptionError
from cfm.cli import info, main
from cfm.cli.main import build_parser

COMMANDS = ("demo", "embed", "annotate", "integrate", "tokenize", "pretrain", "models", "fetch", "info")


def test_help_names_every_command_and_loads_nothing_heavy():
    code = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('cfm', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "print('loaded:', sorted({'torch', 'scanpy', 'scvi', 'lightning', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert all(f"    {command} " in done.stdout for command in COMMANDS)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "cfm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"cfm-tools {version('cfm-tools')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    examples = [line.split("   ")[0].split() for line in text.split("examples:\n")[1].splitlines() if line.strip()]
    assert examples
    for words in examples:
        assert words[0] == "cfm"
        assert build_parser().parse_args(words[1:]).run is not None


def test_without_a_command_it_shows_the_help_and_says_wrong_usage(capsys):
    assert main([]) == 2
    assert "cfm annotate cells.h5ad -o labelled.h5ad" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed"], "the following arguments are required: CELLS"),
        (["embed", "cells.h5ad"], "one of the arguments -o/--output --inplace is required"),
        (["embed", "cells.h5ad", "-o", "a.h5ad", "--inplace"], "not allowed with argument"),
        (["embed", "cells.h5ad", "--inplace", "--key-added", "a/b"], "'a/b' cannot be a key"),
        (["embed", "cells.h5ad", "--inplace", "--threads", "0"], "'0' is no whole number above 0"),
        (["models", "--quiet", "--verbose"], "not allowed with argument"),
        (["embedd"], "invalid choice: 'embedd'"),
    ],
)
def test_wrong_usage_is_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def _command(monkeypatch: pytest.MonkeyPatch, run) -> None:
    """Let ``cfm models`` do something else."""
    monkeypatch.setattr(info, "_models", run)


def test_ctrl_c_is_130(monkeypatch, capsys):
    def run(_args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    _command(monkeypatch, run)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "cfm: stopped\n"


def test_ctrl_c_in_a_training_is_130_too(monkeypatch):
    def run(_args: argparse.Namespace) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # what Lightning does

    _command(monkeypatch, run)
    assert main(["models"]) == 130


def test_errors_are_one_line_and_1(monkeypatch, capsys):
    def run(_args: argparse.Namespace) -> None:
        raise OptionError("This does not work.")

    _command(monkeypatch, run)
    assert main(["models"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "cfm: error: This does not work.\n"
    assert captured.out == ""


def test_errors_of_the_system_are_one_line_and_1(monkeypatch, capsys):
    def run(_args: argparse.Namespace) -> None:
        Path("no/such/folder/file").write_text("")

    _command(monkeypatch, run)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == "cfm: error: [Errno 2] No such file or directory: 'no/such/folder/file'\n"


def test_bugs_keep_their_traceback(monkeypatch):
    def run(_args: argparse.Namespace) -> None:
        raise RuntimeError("a bug")

    _command(monkeypatch, run)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["models"])


@pytest.mark.parametrize("words", [["--quiet", "models"], ["models", "--quiet"]])
def test_common_options_stand_before_or_after_the_command_and_hold_for_it_only(words, monkeypatch):
    seen = []
    _command(monkeypatch, lambda _args: seen.append((cfm.settings.verbosity, cfm.settings.progress)))
    before = (cfm.settings.verbosity, cfm.settings.progress)
    assert main(words) == 0
    assert seen == [("warning", False)]
    assert (cfm.settings.verbosity, cfm.settings.progress) == before


def test_threads_hold_for_the_command_only(monkeypatch):
    seen = []
    _command(monkeypatch, lambda _args: seen.append((cfm.settings.threads, torch.get_num_threads())))
    before = (cfm.settings.threads, torch.get_num_threads())
    assert main(["--threads", "1", "models"]) == 0
    assert seen == [(1, 1)]
    assert (cfm.settings.threads, torch.get_num_threads()) == before


def test_verbose_shows_where_an_error_came_from(monkeypatch, said):
    def run(_args: argparse.Namespace) -> None:
        raise OptionError("This does not work.")

    _command(monkeypatch, run)
    with cfm.settings.override(verbosity="info"):
        assert main(["models", "-v"]) == 1
    assert "DEBUG where it happened" in said
