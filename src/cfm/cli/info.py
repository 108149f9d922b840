"""``cfm models``, ``cfm fetch`` and ``cfm info``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_command, add_model, add_reading, finish
from .tables import columns, labels_found, pairs

if TYPE_CHECKING:
    from anndata import AnnData

    from .options import Commands

_DATA_SUFFIXES = (".h5ad", ".zarr", ".h5", ".h5mu", ".loom")


def add_commands(commands: Commands) -> None:
    """Add the three commands."""
    parser = add_command(
        commands,
        "models",
        _models,
        summary="list the models",
        description="""\
List the models that can be called by name, and whether each is here, can be downloaded, or has to be brought by hand.
The network is not asked. A model is downloaded when it is first used, or with `cfm fetch`.""",
        examples="  cfm models",
    )
    finish(parser)
    parser = add_command(
        commands,
        "fetch",
        _fetch,
        summary="download a model, or take it from a folder",
        description="""\
Bring a model into the cache, so that it works by name and without a network, and print its folder. What is there and
intact is left alone; a download that was cut goes on where it stopped. For a model that cannot be downloaded, the
message says where to get it. CFM_CACHE_DIR in the environment chooses another cache, CFM_OFFLINE=1 forbids downloads.""",
        examples="""\
  cfm fetch geneformer-v2-104m
  cfm fetch scgpt-human --folder ~/Downloads/scGPT_human""",
    )
    parser.add_argument("name", metavar="NAME", help="a name that `cfm models` lists")
    # Not called like the argument of the function: its messages say what to type here already.
    parser.add_argument("--folder", dest="given", metavar="DIR", type=Path,
                        help="take the files from here: checked, then copied into the cache")  # fmt: skip
    finish(parser)
    parser = add_command(
        commands,
        "info",
        _info,
        summary="show what a model is, or what cfm finds in a file and wrote there",
        description="""\
For a model: family, version, digest of the weights, licence, species, sizes, and the labels that it can give. Of one
that is not here yet, its files and how to get them; nothing is downloaded.
For a file of cells: where the raw counts are, how many of its genes a model knows, and what cfm wrote into it and
with what. Nothing is computed and nothing is written.""",
        examples="""\
  cfm info cfm-mini
  cfm info geneformer-v2-104m
  cfm info my_model/
  cfm info cells.h5ad
  cfm info mouse.zarr --species mouse""",
    )
    parser.add_argument("target", metavar="MODEL_OR_FILE", help="a name, a model folder, an h5ad file or a zarr folder")
    add_model(parser)
    add_reading(parser)
    finish(parser)


def _models(_args: argparse.Namespace) -> None:
    from cfm import models

    table = models.list().reset_index()
    print(columns([list(table.columns), *table.astype(str).to_numpy().tolist()]))


def _fetch(args: argparse.Namespace) -> None:
    from cfm import models

    print(models.fetch(args.name, folder=args.given))


def _info(args: argparse.Namespace) -> None:
    path = Path(args.target)
    is_store = path.is_file() or any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
    if is_store or path.suffix in _DATA_SUFFIXES:
        _show_cells(path, args)
    else:
        _show_model(args.target)


def _show_model(name: str) -> None:
    from cfm import models

    table = models.list()
    if name in table.index and table.loc[name, "available"] not in ("packaged", "cached"):
        _show_entry(name)
        return
    model = models.load(name, device="cpu")
    spec, reference = model.spec, model.reference()
    rows = [
        ("family", spec.family),
        ("version", spec.version),
        ("digest", spec.digest),
        ("licence", spec.licence),
        ("species", spec.species),
        ("genes", f"{len(model.vocabulary):,}"),
        ("dim", f"{spec.dim:,}"),
        ("max tokens", f"{spec.max_tokens:,}"),
        ("outputs", ", ".join(sorted(spec.outputs))),
        ("labels", "none: annotate needs --reference" if reference is None else ", ".join(reference.names)),
    ]
    print(pairs(spec.name, rows))


def _show_entry(name: str) -> None:
    """What the registry knows of a model that is not here yet."""
    from cfm.models.download import cache_folder
    from cfm.models.registry import entries

    entry, cache = entries()[name], cache_folder()
    rows = [
        ("family", entry.family),
        ("licence", entry.licence),
        ("species", entry.species),
        ("about", entry.description),
        ("available", entry.available(cache)),
        *([("notice", entry.notice)] if entry.notice else []),
        *[("file", f"{entry.url_of(file) or file.name}{_size(file.size)}") for file in entry.files],
        ("get it", f"cfm fetch {name}"),
    ]
    print(pairs(name, rows))


def _size(size: int | None) -> str:
    from cfm.models.entry import readable

    return f" ({readable(size)})" if size else ""


def _show_cells(path: Path, args: argparse.Namespace) -> None:
    from .reading import kind_of, open_cells, read_column

    kind = kind_of(path)
    with open_cells(path) as adata:
        rows = [("kind", kind), ("cells", f"{adata.n_obs:,}"), ("genes", f"{adata.n_vars:,}"), *_found(adata, args)]
        kept: Mapping[str, Any] = adata.uns.get("cfm", {})
    print(pairs(str(path), rows))
    print()
    print(pairs("written by cfm", [(key, _line(record)) for key, record in kept.items()] or [("nothing", "")]))
    for key, record in kept.items():
        labels = read_column(path, key) if record.get("function") == "cfm.tl.annotate" else None
        if labels is not None:
            print()
            print(columns(labels_found(labels, read_column(path, f"{key}_confidence"))))


def _found(adata: AnnData, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Where counts and genes are; a file without them is an answer too, not an error."""
    from cfm import infer, models
    from cfm._core.errors import CountsError, GeneMatchError
    from cfm.counts import find_counts

    try:
        rows = [("counts", find_counts(adata, layer=args.layer).where)]
    except CountsError as error:
        return [("counts", _indented(error))]
    model = models.load(args.model, device="cpu")
    try:
        prepared = infer.prepare(adata, model, layer=args.layer, gene_column=args.gene_column, species=args.species,
                                 gene_table=args.gene_table)  # fmt: skip
    except GeneMatchError as error:
        return [*rows, ("gene names", _indented(error))]
    found = prepared.found
    return [
        *rows,
        ("gene names", f"{found.identifier} in {found.column}, {found.species}"),
        ("known genes", f"{found.n_columns:,} of {len(found.tokens):,} to {model.spec.name}"),
    ]


def _indented(error: Exception) -> str:
    return str(error).replace("\n", "\n    ")


def _line(record: Mapping[str, Any]) -> str:
    """The record of a call in one line."""
    parts = [f"{record.get('function', '?')} {record.get('version', '')} at {record.get('time', '?')}"]
    parts.append(f"{record.get('model', '?')} ({record.get('model_digest', '?')})")
    if "counts" in record:
        parts.append(f"counts from {record['counts']}")
    if "coverage" in record:
        report = record["coverage"]
        parts.append(f"{int(report['n_matched']):,} of {int(report['n_genes']):,} genes")
        parts.append(f"{float(report['share_of_counts']):.1%} of counts")
    if "n_reference" in record:
        parts.append(f"{int(record['n_reference']):,} labelled cells ({record.get('reference', '?')})")
    return "; ".join(parts)
