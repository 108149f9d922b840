"""Reading a scFoundation folder: strictly, only what is wanted, and nothing is executed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file, save_file

import cfm
from cfm import models
from cfm.errors import CheckpointError, OptionError
from cfm.models import registry
from cfm.models.scfoundation import ScfoundationModel, genes
from cfm.models.scfoundation.names import PREFIX, from_official, to_official

Rewrite = Callable[[Callable[[dict[str, Any]], object]], None]
GENE_LIST = "OS_scRNA_gene_index.510.tsv"


def load(folder: Path, **options: Any) -> ScfoundationModel:
    found = models.load(folder, device="cpu", **options)
    assert isinstance(found, ScfoundationModel)
    return found


@pytest.mark.parametrize("key", ["cell", "gene", "rde"])
def test_every_tensor_of_a_model_is_loaded(folder: Path, key: str) -> None:
    model = load(folder, weights=key)
    stored = torch.load(folder / "models.ckpt", weights_only=True)[key]["state_dict"]
    counter = "decoder.performer.calls_since_last_redraw"
    assert str(model.reports[key]) == (f"88 of 88 tensors matched, none left over, 1 not needed ({counter})")
    ours = {PREFIX + name: tensor for name, tensor in to_official(model.networks[key].state_dict()).items()}
    assert ours.keys() == stored.keys() - {PREFIX + counter}
    assert all(torch.equal(ours[name], stored[name]) for name in ours)
    assert key in model.networks


def test_names_come_back(folder: Path) -> None:
    stored = load_file(folder / "gene.safetensors")
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items() if "calls_since" not in name}
    ours = from_official(stored)
    assert not [name for name in ours if not name.startswith(("encoder.", "decoder."))]
    back = to_official(ours)
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[name], stored[name]) for name in stored)


def test_settings_are_read_and_not_assumed(folder: Path) -> None:
    """bin_alpha is 0.75 in one of the three models of the fixture, and 1 in the others as in all that were published."""
    model = load(folder)
    assert model.network("cell").shape.alpha == 0.75
    assert model.network("gene").shape.alpha == 1.0
    assert model.spec.dim == 96
    assert load(folder, pool="max").spec.dim == 24
    assert model.spec.positions == {"gene": 512, "gene_expression": 512}


def test_each_output_comes_from_the_model_of_its_authors(folder: Path) -> None:
    registry._load.cache_clear()
    model = load(folder)
    assert list(model.networks) == ["cell"]
    model.gene_vectors()
    assert list(model.networks) == ["cell", "gene"]
    rde = load(folder, weights="rde")
    rde.gene_vectors()
    assert list(rde.networks) == ["rde"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_the_other_models_of_the_file_are_not_in_memory(copied: Path, rewrite: Rewrite) -> None:
    """The file is mapped: pages that nobody looks at are not read. Ten megabytes of each model are never looked at."""
    size = 40

    def grow(content: dict[str, Any]) -> None:
        for part in content.values():
            extra = {f"model.extra.{i}": torch.ones(size * 2**18) for i in range(1)}
            part["state_dict"] |= extra

    rewrite(grow)
    code = f"""
import resource, torch
from pathlib import Path
from cfm.models.scfoundation import checkpoint
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20
checkpoint.read(Path({str(copied.parent)!r}) / 'small.ckpt', 'cell')
before = resident()
found = checkpoint._part(Path({str(copied)!r}) / 'models.ckpt', 'cell')
print(resident() - before)
found[1]['extra.0'].sum()
print(resident() - before)
"""
    small = torch.load(copied / "models.ckpt", weights_only=True)
    for part in small.values():
        part["state_dict"] = {k: v for k, v in part["state_dict"].items() if "extra" not in k}
    torch.save(small, copied.parent / "small.ckpt")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    untouched, touched = map(float, done.stdout.split())
    assert (copied / "models.ckpt").stat().st_size > 3 * size * 2**20
    assert untouched < size / 4
    assert size * 0.9 < touched < size * 1.5


# --- files that are wrong


def test_folders_of_this_family_are_recognised(folder: Path, copied: Path) -> None:
    assert load(folder).spec.family == "scfoundation"
    for path in list(copied.iterdir()):
        if path.name != "models.ckpt":
            path.unlink()
    with pytest.raises(CheckpointError, match="has no gene list"):
        load(copied)


def test_a_missing_gene_list_is_named_with_its_place(copied: Path, folder: Path) -> None:
    (copied / GENE_LIST).unlink()
    with pytest.raises(
        CheckpointError, match=r"biomap-research/scFoundation: copy it beside the weights, or type gene_list="
    ):
        load(copied)
    expected = load(folder).vocabulary.symbols
    assert load(copied, gene_list=folder / GENE_LIST).vocabulary.symbols == expected
    assert load(copied, gene_list=str(folder / GENE_LIST)).vocabulary.symbols == expected
    with pytest.raises(OptionError, match="gene_list='genes.tsv': there is no such file"):
        load(copied, gene_list="genes.tsv")
    for name in ("OS_scRNA_gene_index.a.tsv", "OS_scRNA_gene_index.b.tsv"):
        (copied / name).write_text("gene_name\tindex\n")
    with pytest.raises(CheckpointError, match=r"several gene lists: \['OS_scRNA_gene_index.a.tsv'"):
        load(copied)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[:-1], "has 509 genes, and the weights have 510"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "indices 0, 1, 2"),
        (lambda lines: lines[1:], "needs the columns gene_name and index"),
        (lambda lines: [lines[0], *[f"ACTB\t{i}" for i in range(510)]], "names a gene twice"),
        (lambda lines: ["x"], "needs the columns"),
        (lambda lines: [], "is no gene list: it needs"),
    ],
)
def test_gene_lists_that_cannot_be(copied: Path, change: Callable[[list[str]], list[str]], says: str) -> None:
    path = copied / GENE_LIST
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(CheckpointError, match=says):
        load(copied)


def test_a_list_of_full_length_that_is_not_the_published_one(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "list.tsv"
    lines = [f"gene_{i}\t{i}" for i in range(genes.OFFICIAL_SIZE)]
    path.write_text("\n".join(["gene_name\tindex", *lines]))
    assert len(genes.read_list(path, genes.OFFICIAL_SIZE)) == genes.OFFICIAL_SIZE
    assert said[0].startswith(f"WARNING {path} is not the gene list that was published with scFoundation")


def test_missing_weights(copied: Path, folder: Path) -> None:
    (copied / "models.ckpt").unlink()
    save_file(load_file(folder / "gene.safetensors"), copied / "gene.safetensors")
    with pytest.raises(CheckpointError, match=r"has no models.ckpt, which a scFoundation folder needs. It holds \["):
        load(copied)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut(copied: Path, share: float) -> None:
    path = copied / "models.ckpt"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="models.ckpt"):
        load(copied)


def test_a_hostile_file_is_refused_and_not_run(copied: Path, bomb: tuple[bytes, Path]) -> None:
    data, executed = bomb
    (copied / "models.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match="Files that could run code are refused"):
        load(copied)
    assert not executed.exists()


def test_hostile_code_inside_the_archive_is_not_run(copied: Path, rewrite: Rewrite, tmp_path: Path) -> None:
    executed = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return open, (str(executed), "w")

    rewrite(lambda content: {**content, "cell": {**content["cell"], "config": Bomb()}})
    executed.unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="Files that could run code are refused"):
        load(copied)
    assert not executed.exists()


def test_weights_of_another_family(copied: Path, folder: Path) -> None:
    other = folder.parent / "scgpt" / "human" / "best_model.pt"
    torch.save(torch.load(other, weights_only=True), copied / "models.ckpt")
    with pytest.raises(CheckpointError, match="look like scgpt, not like scfoundation"):
        load(copied)


@pytest.mark.parametrize("content", [[1, 2], 3, {"epoch": 1}])
def test_files_of_something_else(copied: Path, content: object) -> None:
    torch.save(content, copied / "models.ckpt")
    with pytest.raises(CheckpointError, match=r"models.ckpt (holds|has no model 'cell')"):
        load(copied)


def settings(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["cell"]["config"]["model_config"]["mae_autobin"]
    return found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("cell"), "has no model 'cell' with settings and weights. It holds ..gene"),
        (lambda c: c["cell"].pop("config"), "has no model 'cell' with settings"),
        (lambda c: c["cell"]["config"].pop("model_config"), "settings of another form"),
        (lambda c: c["cell"]["config"].update(model="other"), "no 'other'"),
        (lambda c: c["cell"].update(config=None), "settings of another form than"),
        (lambda c: settings(c).pop("encoder"), "no settings of its encoder"),
        (lambda c: settings(c)["encoder"].update(module_type="mamba"), "'mamba' as its encoder; known: 'transformer'"),
        (lambda c: settings(c)["decoder"].update(module_type="transformer"), "'transformer' as its decoder"),
        (lambda c: settings(c)["encoder"].update(depth=0), "no whole number above 0 for {'layers': 0}"),
        (lambda c: settings(c)["encoder"].update(heads=5), "do not go together: .*'heads': 5"),
        (lambda c: settings(c).update(bin_alpha="one"), "settings that do not go together"),
        (lambda c: settings(c).update(seq_len=400), "does not fit its network"),
        (lambda c: c["cell"]["state_dict"].pop("model.pos_emb.weight"), r"Missing: \['cell: model.pos_emb.weight'\]"),
        (lambda c: c["cell"]["state_dict"].update({"model.new": torch.ones(1)}), r"left over: \['cell: model.new'\]"),
        (
            lambda c: c["cell"]["state_dict"].pop("model.encoder.transformer_encoder.1.self_attn.in_proj_bias"),
            r"Missing: \['cell: model.encoder.transformer_encoder.1.self_attn.in_proj_bias'",
        ),
        (lambda c: c["cell"].update(state_dict={"a": 1}), "has no tensors for its model 'cell'"),
    ],
)
def test_what_is_wrong_is_named(copied: Path, rewrite: Rewrite, change: Callable[..., object], says: str) -> None:
    rewrite(lambda content: (change(content), None)[1])
    with pytest.raises(CheckpointError, match=says):
        load(copied)


def test_a_model_of_the_file_with_other_genes(copied: Path, rewrite: Rewrite) -> None:
    def shorten(content: dict[str, Any]) -> None:
        part = content["gene"]
        part["config"]["model_config"]["mae_autobin"]["seq_len"] = 500
        part["config"]["dataset_config"]["rnaseq"].pop("seq_len", None)
        part["state_dict"]["model.pos_emb.weight"] = part["state_dict"]["model.pos_emb.weight"][:501].clone()

    rewrite(shorten)
    with pytest.raises(CheckpointError, match="are for 510 and, 'gene', for 498 genes"):
        load(copied).gene_vectors()


def test_half_precision_is_read_as_single(copied: Path, rewrite: Rewrite) -> None:
    def halve(content: dict[str, Any]) -> None:
        tensors = content["cell"]["state_dict"]
        tensors |= {name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()}

    rewrite(halve)
    kinds = {tensor.dtype for tensor in load(copied).networks["cell"].state_dict().values()}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("option", [{"weights": "all"}, {"pool": "mean"}, {"compat": "x"}, {"precision": "float16"}])
def test_unknown_values(folder: Path, option: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(option))}="):
        load(folder, **option)


# --- the licence


def test_the_licence_is_shown_once_before_the_first_use(folder: Path, some: AnnData, said: list[str]) -> None:
    registry._show_family_notice.cache_clear()
    cfm.tl.embed(some, model=folder, device="cpu")
    cfm.tl.embed(some, model=folder, device="cpu", pool="max")
    notices = [line for line in said if "non-commercial" in line]
    assert len(notices) == 1
    assert notices[0].startswith("WARNING scfoundation: its weights are under the scFoundation License")
    assert said.index(notices[0]) == 0


def test_the_published_model_is_known_by_name() -> None:
    entry = registry.entries()["scfoundation"]
    assert "non-commercial" in entry.notice
    assert {file.name: file.size for file in entry.files} == {
        "models.ckpt": 1_432_587_886,
        "OS_scRNA_gene_index.19264.tsv": 228_232,
    }
    assert entry.files[1].sha256 == genes.OFFICIAL_SHA256
    assert "non-commercial" in cfm.models.list().loc["scfoundation", "licence"]
    assert all(entry.url_of(file).startswith("https://") for file in entry.files)


def test_vectors_of_genes_are_rows_of_the_positions(folder: Path) -> None:
    stored = torch.load(folder / "models.ckpt", weights_only=True)["gene"]["state_dict"]["model.pos_emb.weight"]
    np.testing.assert_array_equal(load(folder).gene_vectors(), stored[:510].numpy())
