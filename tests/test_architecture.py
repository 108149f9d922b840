"""The one-way street between the rooms of the package, and what may not be loaded where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cfm

PACKAGE = Path(cfm.__file__).parent

# From the bottom to the top: a room imports only from rooms that stand before it.
ROOMS = ("_core", "genes", "counts", "tokens", "kernels", "nn", "models", "infer", "train", "integration")
# These see all of the above, and each other.
PUBLIC = ("pp", "tl", "pl", "metrics", "datasets")
# On top of everything.
TOP = ("cli",)


def modules(*rooms: str) -> list[Path]:
    """Python files of some rooms, or of the whole package."""
    return sorted(path for room in rooms or ("",) for path in (PACKAGE / room).rglob("*.py"))


def name_of(path: Path) -> tuple[str, ...]:
    """Dotted name of a module, in parts, ``cfm`` left out; a package is its ``__init__``."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names of all that a file imports, at its top, inside functions and in type-checking blocks.

    ``from cfm import infer`` gives ``cfm.infer``; ``import_module("cfm.tl")`` counts too.
    """
    package = ("cfm", *name_of(path)[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def outside(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def rooms_of(path: Path) -> set[str]:
    """Rooms of this package that a file imports from, ``""`` for the package itself."""
    parts = [name.split(".") for name in imports(path) if name.split(".")[0] == "cfm"]
    return {part[1] if len(part) > 1 else "" for part in parts}


def ids(path: Path) -> str:
    return "/".join(name_of(path))


def test_every_room_has_its_place_in_the_order() -> None:
    found = {path.parent.relative_to(PACKAGE).parts[0] for path in modules() if path.parent != PACKAGE}
    assert found <= {*ROOMS, *PUBLIC, *TOP}, "a new room: give it a place in the order of docs and of this test"


def test_the_reader_of_imports_sees_all_kinds(tmp_path: Path) -> None:
    path = PACKAGE / "tl" / "_example.py"  # a name to resolve relative imports from; the text comes from elsewhere
    text = (
        "import torch.nn\nfrom cfm import infer, models\nfrom ._embed import embed\nfrom .. import genes\n"
        "def f():\n    from cfm.train import run\n    import_module('cfm.cli')\n"
    )
    source = tmp_path / "example.py"
    source.write_text(text)

    class Stand(type(path)):  # type: ignore[misc]
        def read_text(self, *args: object, **kwargs: object) -> str:
            return source.read_text()

    stand = Stand(path)
    assert set(imports(stand)) == {
        "torch.nn",
        "cfm.infer",
        "cfm.models",
        "cfm.tl._embed.embed",
        "cfm.genes",
        "cfm.train.run",
        "cfm.cli",
    }
    assert rooms_of(stand) == {"infer", "models", "tl", "genes", "train", "cli"}


@pytest.mark.parametrize("path", [p for p in modules() if p.parent != PACKAGE], ids=ids)
def test_imports_go_one_way(path: Path) -> None:
    room = name_of(path)[0]
    if room in ROOMS:
        allowed = set(ROOMS[: ROOMS.index(room) + 1])
    else:
        allowed = {*ROOMS, *PUBLIC, room}
    assert rooms_of(path) <= allowed


@pytest.mark.parametrize("path", modules("models"), ids=ids)
def test_families_know_nothing_of_anndata(path: Path) -> None:
    assert not outside(path) & {"anndata", "scanpy", "mudata"}


@pytest.mark.parametrize("path", modules("tokens", "genes", "counts", *PUBLIC), ids=ids)
def test_no_tensors_below_the_models_and_in_public_functions(path: Path) -> None:
    assert not outside(path) & {"torch", "lightning"}


@pytest.mark.parametrize("path", modules("_core"), ids=ids)
def test_core_is_light(path: Path) -> None:
    assert not outside(path) & {"torch", "lightning", "numba", "numpy", "scipy", "pandas", "scanpy", "sklearn"}


def families() -> list[str]:
    return sorted(path.parent.name for path in (PACKAGE / "models").glob("*/__init__.py"))


def test_a_family_is_one_folder_and_no_other_file_names_it() -> None:
    assert "mini" in families()
    for family in families():
        # Training makes models of one family, and has to know its network.
        for path in modules():
            if path.is_relative_to(PACKAGE / "models" / family) or path.is_relative_to(PACKAGE / "train"):
                continue
            named = [name for name in imports(path) if f"{name}.".startswith(f"cfm.models.{family}.")]
            assert not named, f"{path} imports {named}"


def loaded_after(*statements: str) -> list[set[str]]:
    """Top-level packages that a fresh process has loaded after each statement."""
    report = "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    code = "\n".join(["import sys", *(f"{statement}\n{report}" for statement in statements)])
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_imports_load_nothing_heavy() -> None:
    package, below_models, public = loaded_after(
        "import cfm; cfm.settings, cfm.errors, dir(cfm)",
        "import cfm._core.inputs, cfm._core.records, cfm.counts, cfm.genes, cfm.tokens",
        "cfm.tl, cfm.pp, cfm.pl, cfm.datasets, cfm.models",
    )
    assert not package & {"torch", "scanpy", "scvi", "lightning", "sklearn", "matplotlib"}
    assert not below_models & {"torch", "scanpy", "scvi", "lightning", "sklearn", "matplotlib"}
    assert "torch" in public, "models need it; this guards the check itself"
    assert not public & {"scanpy", "scvi", "lightning"}
