"""Reading a MuData: which modality is what, its counts, which cells it has, and the batch of each cell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from cfm._core.errors import CountsError, MissingKeyError, OptionError
from cfm.integration import batch_column, find_modalities
from cfm.integration.features import _ISOTYPE

SHARED = Path(__file__).parents[3] / "shared" / "data" / "multi"

# CD4 and CD14 are genes and proteins, which MuData warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:var_names are not unique"),
    pytest.mark.filterwarnings("ignore:Cannot join columns with the same name because var_names"),
]

PROTEINS = ["CD3", "CD4", "CD20", "CD14"]


@pytest.fixture
def rna(few: AnnData) -> AnnData:
    """60 real cells."""
    few.obs = pd.DataFrame({"batch": ["a", "b"] * 30}, index=few.obs_names)
    few.uns, few.obsm, few.varm, few.obsp, few.raw = {}, {}, {}, {}, None
    return few


def columns_of(rna: AnnData, n: int, names: list[str], seed: int = 0) -> AnnData:
    """Counts of genes that many cells express, under other names."""
    counts = sp.csr_matrix(rna.X)
    many = np.argsort(-np.asarray((counts > 0).sum(axis=0)).ravel())[:n]
    order = np.random.default_rng(seed).permutation(n)
    return AnnData(counts[:, many[order]], obs=rna.obs.copy(), var=pd.DataFrame(index=names))


@pytest.fixture
def prot(rna: AnnData) -> AnnData:
    """Four proteins of the same cells."""
    return columns_of(rna, 4, PROTEINS)


@pytest.fixture
def atac(rna: AnnData) -> AnnData:
    """Five peaks of the same cells."""
    return columns_of(rna, 5, [f"chr1:{i}00-{i}50" for i in range(1, 6)], seed=1)


def run(code: str, mdata: MuData) -> MuData:
    """Do what a message says."""
    names = {"mdata": mdata, "mudata": mudata}
    exec(code, names)
    return names["mdata"]


def pairing_code(message: str) -> str:
    loop, update = re.search(r"(for name in .*regex=True\)) and then (mdata = .*); what stands", message).groups()
    return f"{loop}\n{update}"


# Which is which


@pytest.mark.parametrize(
    "names",
    [
        ("rna", "prot", "atac"),
        ("gex", "adt", "peaks"),
        ("GEX", "ADT", "ATAC"),
        ("Gene Expression", "Antibody Capture", "Peaks"),
        ("gene_expression", "cite", "scATAC"),
        ("pbmc_rna", "protein_raw", "atac-peaks"),
        ("RNA", "ab", "chromatin accessibility"),
    ],
)
def test_common_names(names: tuple[str, ...], rna: AnnData, prot: AnnData, atac: AnnData) -> None:
    found = find_modalities(MuData(dict(zip(names, (rna, prot, atac), strict=True))))
    assert [(part.kind, part.name) for part in found.parts.values()] == list(
        zip(("rna", "protein", "atac"), names, strict=True)
    )


def test_one_line_says_what_was_taken(said: list[str], rna: AnnData, prot: AnnData) -> None:
    hto, scores = columns_of(rna, 2, ["HTO1", "HTO2"]), columns_of(rna, 3, ["A", "B", "C"])
    mdata = MuData({"hto": hto, "adt": prot[5:], "gex": rna[:50], "atac_gene_activity": scores[:55]})
    found = find_modalities(mdata)
    assert list(found.parts) == ["rna", "protein"]
    assert said == [
        "INFO modalities: rna is mdata.mod['gex'], X (50 cells, 765 genes), protein is mdata.mod['adt'], X (55 cells, 4 "
        "proteins); left out: 'hto', 'atac_gene_activity'; of 60 cells, 45 are in all of these and 0 in none"
    ]


def test_names_that_say_nothing_and_types_of_10x(rna: AnnData, prot: AnnData, atac: AnnData) -> None:
    for adata, types in ((rna, "Gene Expression"), (prot, "Antibody Capture"), (atac, "Peaks")):
        adata.var["feature_types"] = pd.Categorical([types] * adata.n_vars)
    found = find_modalities(MuData({"z": rna, "y": prot, "x": atac}))
    assert {part.kind: part.name for part in found.parts.values()} == {"rna": "z", "protein": "y", "atac": "x"}


def test_a_map_of_the_user(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna, "x": rna[:, :300].copy(), "prot": prot})
    found = find_modalities(mdata, {"protein": "prot", "rna": "x"})
    assert list(found.parts) == ["rna", "protein"]
    assert found.parts["rna"].name == "x"
    assert found.parts["rna"].counts.shape == (60, 300)


def test_one_modality_is_enough(rna: AnnData, prot: AnnData) -> None:
    found = find_modalities(MuData({"rna": rna[:40], "prot": prot}), {"rna": "rna"})
    assert found.measured.sum() == 40
    assert found.measured.shape == (60, 1)


def test_two_of_a_kind(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna, "rna_hvg": rna[:, :300].copy(), "prot": prot})
    message = (
        r"It cannot be told which modality is what: rna may be 'rna' or 'rna_hvg'\. Type modalities=\{'rna': KEY, 'protein': "
        r"KEY, 'atac': KEY\} with keys out of \['rna', 'rna_hvg', 'prot'\], and leave out kinds that there are not\."
    )
    with pytest.raises(OptionError, match=message):
        find_modalities(mdata)


def test_a_name_of_two_kinds(rna: AnnData, prot: AnnData) -> None:
    with pytest.raises(OptionError, match=r"mdata.mod\['rna_atac'\] may be 'atac' or 'rna'. Type modalities="):
        find_modalities(MuData({"rna_atac": rna, "prot": prot}))
    rna.var["feature_types"] = "Gene Expression"
    assert find_modalities(MuData({"rna_atac": rna, "prot": prot})).parts["rna"].name == "rna_atac"


def test_a_name_against_the_types_of_10x(rna: AnnData, prot: AnnData) -> None:
    prot.var["feature_types"] = "Gene Expression"
    mdata = MuData({"x": rna, "prot": prot})
    with pytest.raises(
        OptionError, match=r"\['prot'\] is 'protein' by its name, and 'rna' by its var\['feature_types'\]"
    ):
        find_modalities(mdata)
    assert list(find_modalities(mdata, {"rna": "x", "protein": "prot"}).parts) == ["rna", "protein"]


def test_nothing_recognised(rna: AnnData, prot: AnnData) -> None:
    message = r"was recognised by name or by var\['feature_types'\]. mdata.mod has \['x', 'hto'\]. Type modalities="
    with pytest.raises(OptionError, match=message):
        find_modalities(MuData({"x": rna, "hto": prot}))


def test_a_modality_that_was_never_split(rna: AnnData, prot: AnnData) -> None:
    rna.var["feature_types"] = ["Gene Expression"] * 700 + ["Antibody Capture"] * 65
    mdata = MuData({"rna": rna, "prot": prot})
    with pytest.raises(OptionError, match="holds columns of several kinds") as caught:
        find_modalities(mdata)
    assert "'Antibody Capture', 'Gene Expression'" in str(caught.value)
    code = str(caught.value).split("one of each: ")[1]
    assert eval(code, {"mdata": mdata}).shape == (60, 700)


@pytest.mark.parametrize(
    ("modalities", "error", "message"),
    [
        ({"prot": "protein"}, OptionError, r"The kind comes first: type modalities=\{'protein': 'prot'\}"),
        (
            {"spatial": "prot"},
            OptionError,
            r"modalities= has \['spatial'\], and kinds are \['rna', 'protein', 'atac'\]",
        ),
        ({"spatial": "prot"}, OptionError, r"Type for example modalities=\{'rna': 'rna'\}"),
        ({"rna": "rnas"}, MissingKeyError, r"no 'rnas' to read as rna. Did you mean 'rna'\? It has \['rna', 'prot'\]"),
        ({"rna": "rna", "protein": "rna"}, OptionError, "reads one modality as two kinds"),
        ({}, OptionError, r"modalities=\{\} takes nothing. mdata.mod has \['rna', 'prot'\]: Type modalities="),
    ],
)
def test_maps_that_cannot_be(
    modalities: dict[str, str], error: type[Exception], message: str, rna: AnnData, prot: AnnData
) -> None:
    with pytest.raises(error, match=message):
        find_modalities(MuData({"rna": rna, "prot": prot}), modalities)


def test_something_else_than_a_mudata(rna: AnnData) -> None:
    with pytest.raises(OptionError, match=r"Expected a MuData object, got AnnData. .*mudata.MuData\(\{'rna': RNA"):
        find_modalities(rna)


def test_a_mudata_within_a_mudata(rna: AnnData, prot: AnnData) -> None:
    inner = MuData({"rna": rna})
    mdata = MuData({"in": inner, "prot": prot})
    with pytest.raises(OptionError, match=r"mdata.mod\['in'\] is a MuData.*MuData\(dict\(mdata.mod\['in'\].mod\)\)"):
        find_modalities(mdata, {"rna": "in"})
    assert list(find_modalities(mdata).parts) == ["protein"]


# Which cells


def check_rows(mdata: MuData, modalities: dict[str, str] | None = None) -> None:
    """Rows and counts are those of the names, whatever the order."""
    found = find_modalities(mdata, modalities)
    for column, part in enumerate(found.parts.values()):
        adata = mdata.mod[part.name]
        assert list(mdata.obs_names[part.rows]) == list(adata.obs_names)
        assert part.rows.dtype == part.columns.dtype == np.int64
        assert part.counts.dtype == np.float32
        assert isinstance(part.counts, sp.csr_matrix)
        assert np.array_equal(part.counts.toarray(), sp.csr_matrix(adata.X)[:, part.columns].toarray())
        assert list(part.features) == list(adata.var_names[part.columns])
        assert np.array_equal(found.measured[:, column], mdata.obs_names.isin(adata.obs_names))
    assert found.n_cells == mdata.n_obs


def shuffled(adata: AnnData, seed: int, n: int = 60) -> AnnData:
    return adata[np.random.default_rng(seed).permutation(adata.n_obs)[:n]].copy()


def test_orders_that_differ(rna: AnnData, prot: AnnData, atac: AnnData) -> None:
    check_rows(MuData({"rna": shuffled(rna, 1), "prot": shuffled(prot, 2, 40), "atac": shuffled(atac, 3, 30)}))


def test_a_view(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": shuffled(rna, 1, 50), "prot": shuffled(prot, 2, 40)})
    cells = np.random.default_rng(3).permutation(mdata.n_obs)[:30]
    check_rows(mdata[cells])
    check_rows(mdata[cells].copy())
    check_rows(mdata[cells, 300:])


def test_modalities_cut_after_the_object_was_made(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna, "prot": shuffled(prot, 1)})
    mdata.mod["rna"] = shuffled(rna, 2, 35)
    mdata.mod["prot"] = shuffled(prot, 3)
    check_rows(mdata)
    mdata.update()
    check_rows(mdata)


def test_a_modality_added_after_the_object_was_made(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna})
    mdata.mod["prot"] = shuffled(prot, 1, 20)
    check_rows(mdata)


def test_cells_that_the_object_does_not_know(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna[:50], "prot": prot[:50]})
    mdata.mod["prot"] = shuffled(prot, 1)
    message = r"mdata does not know 10 of 60 cells of mdata.mod\['prot'\], such as '.*'.*Type mdata.update\(\) or, where that gives up, mdata = mudata"
    with pytest.raises(OptionError, match=message):
        find_modalities(mdata)
    mdata.update()
    check_rows(mdata)


def test_from_a_file(tmp_path: Path, rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": shuffled(rna, 1, 50), "prot": shuffled(prot, 2, 40)})
    expected = find_modalities(mdata)
    mdata.write_h5mu(tmp_path / "x.h5mu")
    for read in (mudata.read_h5mu(tmp_path / "x.h5mu"), mudata.read_h5mu(tmp_path / "x.h5mu", backed="r")):
        found = find_modalities(read)
        for kind, part in expected.parts.items():
            assert np.array_equal(found.parts[kind].rows, part.rows)
            assert np.array_equal(found.parts[kind].counts.toarray(), part.counts.toarray())


def test_names_that_are_categories(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna, "prot": shuffled(prot, 1)})
    mdata.mod["rna"].obs.index = pd.CategoricalIndex(rna.obs_names)
    check_rows(mdata)


def test_a_mosaic_is_no_mistake(said: list[str], rna: AnnData, prot: AnnData, atac: AnnData) -> None:
    mdata = MuData({"rna": rna[:40], "prot": prot[30:50], "atac": atac[45:]})
    check_rows(mdata)
    assert not [line for line in said if line.startswith("WARNING")]
    assert find_modalities(mdata).measured.sum(axis=1).max() == 2


def test_cells_in_none_of_the_modalities_taken(said: list[str], rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna[:30], "prot": prot[:30], "hto": columns_of(rna, 2, ["HTO1", "HTO2"])})
    check_rows(mdata)
    assert said[-1].endswith("left out: 'hto'; of 60 cells, 30 are in all of these and 30 in none")


def test_two_cells_of_one_name(rna: AnnData, prot: AnnData) -> None:
    for adata in (rna, prot):
        adata.obs["SAMPLE"] = ["s1"] * 30 + ["s2"] * 30
        adata.obs_names = [*adata.obs_names[:30], *adata.obs_names[:30]]
    with warnings.catch_warnings(action="ignore"):
        mdata = MuData({"rna": rna, "prot": prot})
    with pytest.raises(OptionError, match=r"In mdata.mod\['rna'\], 30 obs names stand for several cells") as caught:
        find_modalities(mdata)
    code, update = re.search(r"in the same way: (.*), then (mdata = .*)$", str(caught.value)).groups()
    check_rows(run(f"{code}\n{code.replace('rna', 'prot')}\n{update}", mdata))


def test_no_cells(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna, "prot": prot[:0].copy()})
    message = r"\['prot'\], read as protein, has no cells. Leave it out: type modalities=\{'rna': 'rna'\}"
    with pytest.raises(OptionError, match=message):
        find_modalities(mdata)
    with pytest.raises(OptionError, match=r"has no cells\.$"):
        find_modalities(mdata, {"protein": "prot"})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{}-1", "{}"),
        ("{}", "{}-1-0"),
        ("rna_{}", "atac_{}"),
        ("{}_RNA", "{}_ADT"),
        ("sci_RNA_A_001_{}", "sci_ATAC_A_001_{}"),
        ("scRNA_{}-1", "prot_{}"),
        ("s1_{}-1", "s1#{}-1"),
        ("s1:{}x", "run7_{}-1"),
    ],
)
def test_the_same_barcodes_spelt_differently(first: str, second: str, rna: AnnData, prot: AnnData) -> None:
    barcodes = rna.obs_names.str.extract("([ACGT]{8,})", expand=False)
    rna.obs_names, prot.obs_names = (
        [first.format(code) for code in barcodes],
        [second.format(code) for code in barcodes],
    )
    prot = shuffled(prot, 1, 40)
    mdata = MuData({"gex": rna, "adt": prot})
    with pytest.raises(OptionError, match="look like the same barcodes") as caught:
        find_modalities(mdata)
    one, two = re.search("same barcodes: '(.*)' and '(.*)'. Name them alike", str(caught.value)).groups()
    assert rna.obs_names.get_loc(one) == list(barcodes).index(re.search("[ACGT]{8,}", two)[0])
    mdata = run(pairing_code(str(caught.value)), mdata)
    assert find_modalities(mdata).measured.all(axis=1).sum() == 40
    check_rows(mdata)


def test_pairs_that_there_are_stay_when_a_third_modality_is_renamed(rna: AnnData, prot: AnnData, atac: AnnData) -> None:
    atac.obs_names = atac.obs_names.str.replace(r"-\d+$", "", regex=True)
    mdata = MuData({"rna": rna, "prot": prot, "atac": atac})
    with pytest.raises(OptionError, match=r"No cell of mdata.mod\['atac'\] has the name of a cell of") as caught:
        find_modalities(mdata)
    assert find_modalities(run(pairing_code(str(caught.value)), mdata)).measured.all()


def test_other_cells_of_the_same_barcodes_are_numbered(said: list[str], rna: AnnData, prot: AnnData) -> None:
    rna.obs_names, prot.obs_names = "rna_" + rna.obs_names, "adt_" + prot.obs_names
    mdata = MuData({"gex": rna, "adt": prot})
    with pytest.raises(OptionError, match="If they are other cells, number them") as caught:
        find_modalities(mdata)
    mdata = run(str(caught.value).split("number them: ")[1].replace(" and then ", "\n"), mdata)
    assert find_modalities(mdata).n_cells == 120
    assert any(line.startswith("WARNING nothing is paired") for line in said)


def test_nothing_paired_is_said(said: list[str], rna: AnnData, prot: AnnData) -> None:
    check_rows(MuData({"rna": rna[:30], "prot": prot[30:]}))
    line = next(line for line in said if line.startswith("WARNING"))
    assert re.fullmatch(
        r"WARNING nothing is paired: no cell is paired with one of another modality \(names such as '\S+' \(rna\) and '\S+' "
        r"\(prot\)\). Only features or batches that modalities share could connect them. If they are the same cells, give "
        r"them the same obs_names and make the object again: mdata = mudata.MuData\(dict\(mdata.mod\)\)",
        line,
    )


def test_barcodes_that_a_pattern_makes_alike_are_no_match(said: list[str], rna: AnnData, prot: AnnData) -> None:
    # Two samples of the same barcodes: no pattern tells which cell of the other modality is which.
    codes = [*rna.obs_names[:30], *rna.obs_names[:30]]
    rna.obs_names = [f"{'s1' if i < 30 else 's2'}_{code}" for i, code in enumerate(codes)]
    prot.obs_names = [f"{'x' if i < 30 else 'y'}_{code}" for i, code in enumerate(codes)]
    assert find_modalities(MuData({"rna": rna, "prot": prot})).n_cells == 120
    assert any(line.startswith("WARNING nothing is paired") for line in said)


def test_one_modality_on_its_own_is_said(said: list[str], rna: AnnData, prot: AnnData, atac: AnnData) -> None:
    find_modalities(MuData({"rna": rna[:30], "prot": prot[:30], "atac": atac[30:]}))
    assert any(line.startswith("WARNING 'atac': no cell is paired") for line in said)


def test_numbers_pair_with_anything(said: list[str], rna: AnnData, prot: AnnData) -> None:
    rna.obs_names, prot.obs_names = list(map(str, range(60))), list(map(str, range(60)))
    find_modalities(MuData({"rna": rna, "prot": prot}))
    assert "WARNING the names of the cells are numbers in all of 'rna', 'prot'" in said[0]
    rna.obs_names, prot.obs_names = [f"rna_{i}" for i in range(60)], [f"prot_{i}" for i in range(60)]
    assert find_modalities(MuData({"rna": rna, "prot": prot})).n_cells == 120


def test_pairs_by_chance(said: list[str], rna: AnnData, prot: AnnData) -> None:
    many = ad.concat([rna, rna, rna], keys=["a", "b", "c"], index_unique="-")
    other = ad.concat([prot, prot, prot], keys=["d", "e", "f"], index_unique="-")
    other.obs_names = [*other.obs_names[:-1], many.obs_names[3]]
    find_modalities(MuData({"rna": many, "prot": other}))
    assert "WARNING only 1 of 180 cells that could be in both 'rna' and 'prot' are, by their names" in said[0]


def test_shared_columns_and_cells_of_their_own(rna: AnnData) -> None:
    one, two = rna[:40].copy(), rna[20:].copy()
    with warnings.catch_warnings(action="ignore"):
        mdata = MuData({"x": one, "y": two}, axis=1)
    found = find_modalities(mdata, {"rna": "x", "protein": "y"})
    assert found.n_cells == 80
    assert found.parts["protein"].rows.tolist() == list(range(40, 80))


# Counts


def test_storage(form: str, stored_as: Callable[..., AnnData], rna: AnnData, prot: AnnData) -> None:
    if form.startswith("lazy"):
        pytest.skip("MuData takes no lazy modality")
    expected = sp.csr_matrix(prot.X).toarray()
    stored = stored_as(prot, form)
    if form == "view":
        stored.obs_names = prot.obs_names
    mdata = MuData({"rna": rna, "prot": stored})
    found = find_modalities(mdata).parts["protein"].counts
    assert isinstance(found, sp.csr_matrix)
    assert np.array_equal(found.toarray(), expected)
    assert found.nnz == np.count_nonzero(expected)
    assert found.has_sorted_indices


@pytest.mark.parametrize("stored", ["unsorted", "stored_zeros"])
def test_the_object_stays_as_it_is(
    stored: str,
    stored_as: Callable[..., AnnData],
    digests: Callable[..., Any],
    rna: AnnData,
    prot: AnnData,
    atac: AnnData,
) -> None:
    mdata = MuData({"rna": stored_as(rna, stored), "prot": stored_as(prot, stored), "atac": stored_as(atac, stored)})
    before = {name: digests(adata) for name, adata in mdata.mod.items()}
    find_modalities(mdata)
    assert {name: digests(adata) for name, adata in mdata.mod.items()} == before


def test_counts_of_rna_are_looked_for(
    said: list[str], log_normalise: Callable[..., None], rna: AnnData, prot: AnnData
) -> None:
    counts = rna.X.toarray()
    rna.layers["counts"] = rna.X.copy()
    log_normalise(rna)
    found = find_modalities(MuData({"rna": rna, "prot": prot})).parts["rna"]
    assert np.array_equal(found.counts.toarray(), counts)
    assert "INFO counts: took layers['counts'], since X holds no counts" in said


def test_counts_of_rna_in_raw(said: list[str], log_normalise: Callable[..., None], rna: AnnData, prot: AnnData) -> None:
    counts = rna.X.toarray()
    full = rna.copy()
    log_normalise(rna)
    rna.raw = full[:, 100:]
    cut = rna[:, ::-2].copy()
    found = find_modalities(MuData({"rna": cut, "prot": prot})).parts["rna"]
    assert list(cut.var_names[found.columns]) == list(found.features)
    assert np.array_equal(found.counts.toarray(), counts[:, full.var_names.get_indexer(found.features)])
    assert len(found.features) == 333
    assert "INFO 50 of 383 columns of mdata.mod['rna'] are not in raw, where the counts are, and are left out" in said


def test_raw_of_other_names(log_normalise: Callable[..., None], rna: AnnData, prot: AnnData) -> None:
    full = rna.copy()
    log_normalise(rna)
    full.var_names = "other" + full.var_names
    rna.raw = full
    with pytest.raises(CountsError, match=r"in raw, and none of its names are those of X: 'other.*, .* and '"):
        find_modalities(MuData({"rna": rna, "prot": prot}))
    full.var_names = [full.var_names[1], *full.var_names[1:]]
    rna.raw = full
    with pytest.raises(OptionError, match=r"a name stands twice: 'other.*var_names_make_unique\(\)"):
        find_modalities(MuData({"rna": rna, "prot": prot}))


def test_normalised_rna(log_normalise: Callable[..., None], rna: AnnData, prot: AnnData) -> None:
    counts = rna.X.copy()
    log_normalise(rna)
    mdata = MuData({"gex": rna, "prot": prot})
    with pytest.raises(CountsError) as caught:
        find_modalities(mdata)
    assert str(caught.value).startswith("mdata.mod['gex'] is read as rna. No raw counts found. Looked at:\n  X: ")
    assert str(caught.value).endswith(
        "A joint model trains on the counts of molecules, not on normalised values. No other place in it holds counts (layers "
        "present: []). Put them there: mdata.mod['gex'].layers['counts'] = COUNTS, then type layers={'rna': 'counts'}."
    )
    mdata.mod["gex"].layers["umi"] = counts
    with pytest.raises(CountsError, match=r"layers\['umi'\] holds counts: type layers=\{'rna': 'umi'\}\.$"):
        find_modalities(mdata)
    assert np.array_equal(find_modalities(mdata, layers={"rna": "umi"}).parts["rna"].counts.toarray(), counts.toarray())


def test_normalised_proteins(rna: AnnData, prot: AnnData) -> None:
    counts = prot.X.toarray()
    logs = np.log1p(counts)
    prot.X = logs - logs.mean(axis=1, keepdims=True)
    mdata = MuData({"rna": rna, "prot": prot})
    with pytest.raises(CountsError) as caught:
        find_modalities(mdata)
    assert re.fullmatch(
        r"mdata.mod\['prot'\] is read as protein. X holds no counts: .* minimum -.*\(scaled or centred\).\nA joint model "
        r"trains on the counts of antibodies, not on values that dsb, CLR or a logarithm made of them. No other place in it "
        r"holds counts \(layers present: \[\]\). Put them there: mdata.mod\['prot'\].layers\['counts'\] = COUNTS, then type "
        r"layers=\{'protein': 'counts'\}.",
        str(caught.value),
    )
    mdata.mod["prot"].layers["dsb"] = prot.X
    mdata.mod["prot"].layers["counts"] = counts
    for layers in (None, {"protein": "dsb"}):
        with pytest.raises(CountsError, match=r"layers\['counts'\] holds counts: type layers=\{'protein': 'counts'\}"):
            find_modalities(mdata, layers=layers)
    found = find_modalities(mdata, layers={"protein": "counts"})
    assert np.array_equal(found.parts["protein"].counts.toarray(), counts)


def test_counts_of_proteins_in_raw(rna: AnnData, prot: AnnData) -> None:
    counts = prot.X.toarray()
    prot.raw = prot.copy()
    prot.X = np.log1p(counts)
    mdata = MuData({"rna": rna, "prot": prot})
    with pytest.raises(
        CountsError, match=r"\(log-normalised\).*\n.*raw.X holds counts: type layers=\{'protein': 'raw'\}"
    ):
        find_modalities(mdata)
    assert np.array_equal(find_modalities(mdata, layers={"protein": "raw"}).parts["protein"].counts.toarray(), counts)


def test_no_x(rna: AnnData, prot: AnnData) -> None:
    prot.layers["counts"] = prot.X.copy()
    prot.X = None
    with pytest.raises(CountsError, match=r"There is no X.\n.*type layers=\{'protein': 'counts'\}"):
        find_modalities(MuData({"rna": rna, "prot": prot}))


def test_a_value_that_a_look_at_some_cells_misses(pbmc: AnnData) -> None:
    pbmc.obsm, pbmc.uns, pbmc.raw, pbmc.obsp, pbmc.varm = {}, {}, None, {}, {}
    prot = columns_of(pbmc, 4, PROTEINS)
    dense = prot.X.toarray()
    dense[100, 0] = 0.5
    prot.X = dense
    with pytest.raises(
        CountsError, match=r"\['prot'\] is read as protein. X holds no counts: less than 0.1% of 2,(?s:.*)No other"
    ):
        find_modalities(MuData({"rna": pbmc, "prot": prot}))


def test_fractions_of_peaks(rna: AnnData, atac: AnnData) -> None:
    atac.X = atac.X.toarray() / 3
    with pytest.raises(
        CountsError, match=r"is read as atac. X holds no counts: .*\n.*fragments or cuts, not on TF-IDF"
    ):
        find_modalities(MuData({"rna": rna, "atac": atac}))


def test_peaks_are_not_binarised(rna: AnnData, atac: AnnData) -> None:
    found = find_modalities(MuData({"rna": rna, "atac": atac})).parts["atac"].counts
    assert found.max() == atac.X.max() > 1


def test_nothing_but_zeros(rna: AnnData, prot: AnnData) -> None:
    prot.layers["a"] = np.zeros(prot.shape, np.float32)
    prot.layers["counts"] = prot.X.copy()
    prot.X = prot.layers["a"]
    with pytest.raises(CountsError, match=r"X holds nothing but zeros. layers\['counts'\] holds counts: type layers="):
        find_modalities(MuData({"rna": rna, "prot": prot}))


def test_layers_that_there_are_not(rna: AnnData, prot: AnnData) -> None:
    prot.layers["counts"] = prot.X.copy()
    mdata = MuData({"rna": rna, "prot": prot})
    message = r"mdata.mod\['prot'\] has no layer 'count'. It has \['counts'\]: type layers=\{'protein': 'NAME'\}"
    with pytest.raises(MissingKeyError, match=message):
        find_modalities(mdata, layers={"protein": "count"})
    message = r"layers= names \['prot'\], and what is read is \['rna', 'protein'\]: type layers=\{'rna': 'NAME'\}"
    with pytest.raises(OptionError, match=message):
        find_modalities(mdata, layers={"prot": "counts"})


def test_all_columns_in_raw_in_another_order(log_normalise: Callable[..., None], rna: AnnData, prot: AnnData) -> None:
    full = rna.copy()
    log_normalise(rna)
    rna.raw = full
    cut = rna[:, ::-1].copy()
    found = find_modalities(MuData({"rna": cut, "prot": prot})).parts["rna"]
    assert np.array_equal(found.columns, np.arange(765))
    assert np.array_equal(found.counts.toarray(), full.X.toarray()[:, ::-1])


# Features

ISOTYPES = ["IgG1", "IgG2a", "Mouse-IgG1", "rat_IgG2b", "mouse IgG", "Isotype_MOPC.21", "MouseIgG1kappaisotype_PROT",
            "IgG2a_control_TotalSeqB", "IgG2bk", "ArmenianHamsterIgG_isotype", "hamster IgG", "IgG_control", "ADT_IgG1",
            "RatIgG2b", "IgM control", "Mouse_IgM_Ctrl"]  # fmt: skip
TARGETS = ["IgM", "IgD", "IgG Fc", "anti-human IgG Fc", "Ig light chain k", "FceRIa", "CD16", "TIGIT", "LIGHT", "IgA",
           "CD79b (Igb)", "CD32 (FcgR)", "IgE"]  # fmt: skip


def test_names_of_isotype_controls() -> None:
    assert [name for name in ISOTYPES if not _ISOTYPE.search(name)] == []
    assert [name for name in TARGETS if _ISOTYPE.search(name)] == []


def test_isotype_controls_are_left_out(said: list[str], rna: AnnData, prot: AnnData) -> None:
    prot.var_names = ["CD3", "IgG1", "IgD", "Rat-IgG2b"]
    mdata = MuData({"rna": rna, "prot": prot})
    found = find_modalities(mdata).parts["protein"]
    assert list(found.features) == ["CD3", "IgD"]
    assert list(found.columns) == [0, 2]
    assert np.array_equal(found.counts.toarray(), prot.X.toarray()[:, [0, 2]])
    line = "INFO protein: isotype controls of mdata.mod['prot'] are left out: IgG1, Rat-IgG2b. False in "
    assert said[0] == line + "var['isotype_control'] keeps one"


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ([False, False, False, True], ["CD3", "IgG1", "IgD"]),
        (["False", "True", "no", "yes"], ["CD3", "IgD"]),
        (pd.Categorical(["0", "0", "1", "0"]), ["CD3", "IgG1", "Rat-IgG2b"]),
        ([None, False, None, None], ["CD3", "IgG1", "IgD"]),
        ([0.0, np.nan, 1.0, 0.0], ["CD3", "Rat-IgG2b"]),
    ],
)
def test_a_column_decides(flags: Any, kept: list[str], rna: AnnData, prot: AnnData) -> None:
    prot.var = pd.DataFrame({"isotype_control": flags}, index=["CD3", "IgG1", "IgD", "Rat-IgG2b"])
    assert list(find_modalities(MuData({"rna": rna, "prot": prot})).parts["protein"].features) == kept


def test_a_column_that_says_neither_yes_nor_no(rna: AnnData, prot: AnnData) -> None:
    prot.var["isotype_control"] = ["no", "no", "Mouse IgG1", "no"]
    message = (
        r"\['prot'\].var\['isotype_control'\] says which proteins are isotype controls, and holds 'Mouse IgG1'. Make it"
    )
    with pytest.raises(OptionError, match=message):
        find_modalities(MuData({"rna": rna, "prot": prot}))


def test_nothing_but_isotype_controls(rna: AnnData, prot: AnnData) -> None:
    prot.var_names = ["IgG1", "IgG2a", "IgG2b", "IgG3"]
    mdata = MuData({"rna": rna, "prot": prot})
    with pytest.raises(CountsError, match=r"All 4 proteins of .* isotype controls: 'IgG1', 'IgG2a', 'IgG2b', \.\.\."):
        find_modalities(mdata)
    mdata.mod["prot"].var["isotype_control"] = False
    assert len(find_modalities(mdata).parts["protein"].features) == 4


def test_proteins_that_no_cell_has_stay(said: list[str], rna: AnnData, prot: AnnData) -> None:
    dense = prot.X.toarray()
    dense[:, 2] = 0
    prot.X = dense
    assert len(find_modalities(MuData({"rna": rna, "prot": prot})).parts["protein"].features) == 4
    assert said[0] == "INFO protein: zero in all cells of mdata.mod['prot'], and kept: CD20"


def test_empty_peaks_are_left_out(said: list[str], rna: AnnData, atac: AnnData) -> None:
    dense = atac.X.toarray()
    dense[:, 1] = 0
    atac.X = dense
    found = find_modalities(MuData({"rna": rna, "atac": atac})).parts["atac"]
    assert list(found.columns) == [0, 2, 3, 4]
    assert np.array_equal(found.counts.toarray(), dense[:, [0, 2, 3, 4]])
    assert said[0] == "INFO atac: 1 of 5 peaks of mdata.mod['atac'] are open in no cell and are left out"


def test_peaks_of_two_styles(rna: AnnData, atac: AnnData) -> None:
    atac.var_names = ["chr1:100-150", "chrUn_KI270742v1:1-9", "chr1-200-250", "chrUn_KI270742v1_1_3", "peak_4"]
    mdata = MuData({"rna": rna, "atac": atac})
    message = "are named in 3 styles: 'chr1:100-150', 'chr1-200-250', 'chrUn_KI270742v1_1_3'. Name all in one: "
    with pytest.raises(OptionError, match=message) as caught:
        find_modalities(mdata)
    run(str(caught.value).split("in one: ")[1], mdata)
    assert list(find_modalities(mdata).parts["atac"].features) == [
        "chr1:100-150", "chrUn_KI270742v1:1-9", "chr1:200-250", "chrUn_KI270742v1:1-3", "peak_4"
    ]  # fmt: skip


# The batch of each cell


def test_batches_of_the_object(said: list[str], rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna, "prot": prot})
    mdata.obs["batch"] = pd.Categorical(["z", "y"] * 30)
    found = batch_column(mdata, "batch")
    assert list(found) == ["z", "y"] * 30
    assert list(found.index) == list(mdata.obs_names)
    assert found.name == "batch"
    assert said == ["INFO batches: read from mdata.obs['batch']"]


def test_batches_of_modalities(said: list[str], rna: AnnData, prot: AnnData) -> None:
    of = dict(zip(rna.obs_names, rna.obs["batch"], strict=True))
    prot.obs["batch"] = prot.obs["batch"].astype("category")
    mdata = MuData({"rna": shuffled(rna, 1, 50), "prot": shuffled(prot, 2, 45)})
    assert mdata.n_obs > 50
    assert list(batch_column(mdata, "batch")) == [of[name] for name in mdata.obs_names]
    assert said == ["INFO batches: read from mdata.mod['rna'].obs['batch'], mdata.mod['prot'].obs['batch']"]


def test_batches_pulled_from_modalities(rna: AnnData, prot: AnnData) -> None:
    mdata = MuData({"rna": rna[:40].copy(), "prot": prot[20:].copy()})
    of = dict(zip(rna.obs_names, rna.obs["batch"], strict=True))
    for name, adata in list(mdata.mod.items()):
        mdata.obs[f"{name}:batch"] = adata.obs["batch"].reindex(mdata.obs_names)
        del mdata.mod[name].obs["batch"]
    assert list(batch_column(mdata, "batch")) == [of[name] for name in mdata.obs_names]
    with pytest.raises(MissingKeyError, match=r"20 of 60 cells have no value of 'rna:batch'"):
        batch_column(mdata, "rna:batch")


def test_numbers_beside_missing_values(rna: AnnData, prot: AnnData) -> None:
    rna.obs["lane"], prot.obs["lane"] = [1, 2] * 30, pd.Categorical([1, 2] * 30)
    mdata = MuData({"rna": rna[:40], "prot": prot[20:]})
    mdata.obs["lane"] = pd.Series(1.0, index=mdata.obs_names[:10])
    assert list(batch_column(mdata, "lane")[:12]) == ["1"] * 10 + ["1", "2"]
    mdata.obs["lane"] = 0.5
    message = r"mdata.obs\['lane'\] holds numbers with fractions, and batch_key= .*type mdata.obs\['lane'\] = mdata.obs"
    with pytest.raises(OptionError, match=message):
        batch_column(mdata, "lane")


def test_batches_of_one_modality_by_its_name(rna: AnnData, prot: AnnData) -> None:
    prot.obs["batch"] = "other"
    mdata = MuData({"rna": rna, "prot": prot})
    assert list(batch_column(mdata, "rna:batch")) == ["a", "b"] * 30
    assert set(batch_column(mdata, "prot:batch")) == {"other"}


def test_modalities_that_disagree(rna: AnnData, prot: AnnData) -> None:
    prot.obs.iloc[7, 0] = "z"
    mdata = MuData({"rna": rna, "prot": shuffled(prot, 1)})
    with pytest.raises(OptionError) as caught:
        batch_column(mdata, "batch")
    assert str(caught.value) == (
        f"Modalities give 1 of 60 cells different values of 'batch': {rna.obs_names[7]!r}: 'b' in "
        "mdata.mod['rna'].obs['batch'], 'z' in mdata.mod['prot'].obs['batch']. Put the right one into mdata.obs['batch'], or "
        "name one modality's: batch_key='NAME:batch'."
    )
    mdata.obs["batch"] = "right"
    assert set(batch_column(mdata, "batch")) == {"right"}


def test_cells_without_a_batch(rna: AnnData, prot: AnnData) -> None:
    del prot.obs["batch"]
    mdata = MuData({"rna": rna[:50], "prot": prot})
    with pytest.raises(MissingKeyError) as caught:
        batch_column(mdata, "batch")
    names = ", ".join(map(repr, rna.obs_names[50:53]))
    assert str(caught.value) == (
        f"10 of 60 cells have no value of 'batch', such as {names}. Looked at mdata.mod['rna'].obs['batch']. Put one value "
        "for each cell into mdata.obs['batch'], or leave these cells out."
    )


def test_no_such_column(rna: AnnData, prot: AnnData) -> None:
    del prot.obs["batch"]
    message = r"the obs of a modality has 'donor'. mdata.obs has \[.*\], 'rna' has \['batch'\], 'prot' has \[\]: type batch_key="
    with pytest.raises(MissingKeyError, match=message):
        batch_column(MuData({"rna": rna, "prot": prot}), "donor")


# Real cells


@pytest.mark.parametrize(
    ("file", "shapes", "n_batches"),
    [
        ("citeseq_citefuse", {"rna": (500, 19_521), "protein": (500, 47)}, 0),
        ("citeseq_pbmc10k_200", {"rna": (200, 16_727), "protein": (200, 14)}, 1),
        ("citeseq_pbmc5k_200", {"rna": (200, 16_581), "protein": (200, 29)}, 1),
        ("citeseq_pbmc10k_hvg", {"rna": (1500, 4000), "protein": (1500, 14)}, 0),
        ("multiome_a549", {"rna": (1200, 1185), "atac": (1200, 12_567)}, 0),
        ("multiome_snare_cortex", {"rna": (1500, 1677), "atac": (1500, 6936)}, 12),
    ],
)
def test_published_sets(file: str, shapes: dict[str, Any], n_batches: int) -> None:
    path = SHARED / f"{file}.h5mu"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this repository")
    mdata = mudata.read_h5mu(path)
    found = find_modalities(mdata)
    assert {kind: part.counts.shape for kind, part in found.parts.items()} == shapes
    assert found.measured.all()
    check_rows(mdata)
    if n_batches:
        assert batch_column(mdata, "batch").nunique() == n_batches
    else:
        with pytest.raises(MissingKeyError):
            batch_column(mdata, "batch")
