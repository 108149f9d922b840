"""The official dictionaries: found, read, checked, and nothing in them executed."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cfm
from cfm.errors import CheckpointError, OptionError
from cfm.models.geneformer.dictionaries import Dictionaries, find_dictionaries
from cfm.models.pickles import read_pickled

Spoil = Callable[..., None]
SHARED = Path(__file__).parents[3] / ".." / "shared" / "data" / "vocab" / "geneformer-v1"

V1_TOKENS, V2_TOKENS = 413, 416


@pytest.fixture
def folder(fixtures: Path, tmp_path: Path) -> Path:
    """A folder with V2's dictionaries alone."""
    made = tmp_path / "model"
    shutil.copytree(fixtures / "dictionaries", made, ignore=lambda *_: ["gene_dictionaries_30m", "dictionaries.json"])
    return made


def test_they_hold_what_the_fixture_says(fixtures: Path) -> None:
    plain = json.loads((fixtures / "dictionaries" / "dictionaries.json").read_text())
    for version, size, first in (("V1", V1_TOKENS, 2), ("V2", V2_TOKENS, 4)):
        found = find_dictionaries(fixtures / f"{version}_mlm", None, size)
        genes = plain[f"{version}_genes_in_token_order_first_token_{first}"]
        assert list(found.vocabulary.ensembl_ids) == genes
        assert found.tokens.tolist() == list(range(first, first + len(genes)))
        assert found.medians.tolist() == plain[f"{version}_medians_same_order"]
        assert (found.tokens.dtype, found.medians.dtype) == (np.int32, np.float64)
        symbol_to_id = plain[f"{version}_symbol_to_id"]
        assert {symbol_to_id[symbol] for symbol in found.vocabulary.symbols} == set(genes)
        specials = ["<pad>", "<mask>", "<cls>", "<eos>"][:first]
        assert found.specials == {name: i for i, name in enumerate(specials)}
        assert found.ends == (None if version == "V1" else (2, 3))
    further = {name: gene for name, gene in plain["V2_mapping_not_identity"].items() if gene in genes}
    assert found.vocabulary.aliases == further


@pytest.mark.skipif(not SHARED.is_dir(), reason="V1's real dictionaries are not beside the repository")
def test_the_real_dictionaries_of_v1() -> None:
    found = find_dictionaries(SHARED, None, 25_426)
    assert (len(found.vocabulary), found.ends) == (25_424, None)
    assert found.specials == {"<pad>": 0, "<mask>": 1}
    np.testing.assert_array_equal(found.tokens, np.arange(2, 25_426))
    # Tokens follow the sorted ids, of which 19 are of the pseudo-autosomal kind.
    ids = found.vocabulary.ensembl_ids
    assert list(ids) == sorted(ids)
    assert sum(name.startswith("ENSGR") for name in ids) == 19
    assert 0.09465 < found.medians.min() < 0.09475
    assert 634.2 < found.medians.max() < 634.4
    np.testing.assert_allclose(np.median(found.medians), 2.733, atol=5e-4)
    np.testing.assert_allclose(found.medians[ids.index("ENSG00000198804")], 100.45, atol=5e-3)
    names = read_pickled(SHARED / "gene_name_id_dict.pkl")
    assert len(names) == 40_248
    assert sum(gene in found.vocabulary.by_ensembl for gene in names.values()) == 21_245
    assert found.vocabulary.by_symbol["CD3D"] == ids.index(names["CD3D"])
    with pytest.raises(CheckpointError, match=r"token_dictionary\.pkl has 25,426"):
        find_dictionaries(SHARED, None, 20_275)


# Where they are looked for


@pytest.mark.parametrize(
    "place",
    [".", "..", "geneformer", "dictionaries", "../geneformer", "../dictionaries", "gene_dictionaries_30m",
     "geneformer/gene_dictionaries_30m", "../gene_dictionaries_30m", "../dictionaries/gene_dictionaries_30m"],
)  # fmt: skip
def test_places(fixtures: Path, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "some" / "model"
    folder.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no token dictionary there"):
        find_dictionaries(folder, None, V1_TOKENS)
    shutil.copytree(fixtures / "dictionaries" / "gene_dictionaries_30m", folder / place, dirs_exist_ok=True)
    assert find_dictionaries(folder, None, V1_TOKENS).ends is None


def test_a_folder_of_ones_own_is_the_only_place(fixtures: Path, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(CheckpointError, match=rf"found in dictionaries='{elsewhere}': no token dictionary there"):
        find_dictionaries(folder, elsewhere, V2_TOKENS)
    shutil.copytree(fixtures / "dictionaries", elsewhere / "dictionaries")
    assert find_dictionaries(tmp_path, str(elsewhere), V2_TOKENS).ends == (2, 3)
    assert find_dictionaries(tmp_path, elsewhere, V1_TOKENS).ends is None
    with pytest.raises(OptionError, match=r"dictionaries='.*/nothing' is no folder. Name the one that holds token_"):
        find_dictionaries(folder, tmp_path / "nothing", V2_TOKENS)


def test_the_option_of_load(fixtures: Path, copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("V2_mlm")
    moved = (tmp_path / "dictionaries").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"The model has 416 tokens.*dictionaries='FOLDER'"):
        cfm.models.load(folder, device="cpu")
    model = cfm.models.load(folder, device="cpu", dictionaries=moved)
    assert model.spec.special_tokens == 2
    assert (
        model.vocabulary.ensembl_ids == find_dictionaries(fixtures / "V2_mlm", None, V2_TOKENS).vocabulary.ensembl_ids
    )


def test_the_one_with_as_many_entries_is_taken_and_wrong_sizes_are_named(fixtures: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        find_dictionaries(fixtures / "V1_mlm", None, 20_275)
    message = str(raised.value)
    assert "The model has 20,275 tokens, and no dictionary with as many was found" in message
    assert "token_dictionary_gc104M.pkl has 416" in message
    assert "token_dictionary_gc30M.pkl has 413" in message
    assert "Copy token_dictionary_*.pkl, gene_median_dictionary_*.pkl" in message


@pytest.mark.parametrize("era", ["", "_gc95M", "_gc104M"])
def test_names_of_every_era(folder: Path, era: str) -> None:
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("_gc104M", era)))
    assert find_dictionaries(folder, None, V2_TOKENS).ends == (2, 3)


def test_medians_of_another_era_are_not_taken(folder: Path) -> None:
    (folder / "gene_median_dictionary_gc104M.pkl").rename(folder / "gene_median_dictionary_gc30M.pkl")
    with pytest.raises(CheckpointError) as raised:
        find_dictionaries(folder, None, V2_TOKENS)
    assert "has token_dictionary_gc104M.pkl and lacks gene_median_dictionary_gc104M.pkl" in str(raised.value)
    assert "'gene_median_dictionary_gc30M.pkl'" in str(raised.value)


def test_names_are_not_needed(folder: Path) -> None:
    (folder / "ensembl_mapping_dict_gc104M.pkl").unlink()
    (folder / "gene_name_id_dict_gc104M.pkl").unlink()
    found = find_dictionaries(folder, None, V2_TOKENS)
    assert set(found.vocabulary.symbols) == {""}
    assert not found.vocabulary.aliases
    assert len(found.vocabulary) == 412


# Wrong content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update({"ENSG00000004478": 416}), "does not number its 416 entries from 0 without gaps"),
        (lambda d: d.update({"ENSG00000004478": 5}), "does not number its 416 entries from 0 without gaps"),
        (lambda d: d.update({"ENSG00000004478": -1}), "does not number its 416 entries from 0 without gaps"),
        (lambda d: d.update({"<none>": d.pop("<mask>")}), "has no <mask>: it is no token dictionary"),
        (lambda d: d.update({"a": d.pop("<mask>"), "b": d.pop("<pad>")}), "has no <pad> and no <mask>"),
        (lambda d: d.update({"<end>": d.pop("<eos>")}), "has one of <cls> and <eos> and lacks the other"),
        (lambda d: d.update({"ENSG00000004478": "4"}), "is no dictionary from text to int"),
        (lambda d: d.update({"ENSG00000004478": 4.0}), "is no dictionary from text to int"),
        (lambda d: d.update({7: d.pop("ENSG00000004478")}), "is no dictionary from text to int"),
        (lambda d: d.update({"ENSG00000000000": d.pop("ENSG00000004478")}), "1 genes have a token and no median"),
    ],
    ids=["gap", "twice", "below 0", "no mask", "no pad", "no eos", "text", "float", "key", "no median"],
)
def test_wrong_tokens(folder: Path, spoil: Spoil, change: Callable[[dict[Any, Any]], None], message: str) -> None:
    spoil(folder / "token_dictionary_gc104M.pkl", change)
    with pytest.raises(CheckpointError, match=message):
        find_dictionaries(folder, None, V2_TOKENS)


@pytest.mark.parametrize("median", [0.0, -1.5, float("nan"), float("inf")])
def test_medians_that_cannot_divide(folder: Path, spoil: Spoil, median: float) -> None:
    spoil(folder / "gene_median_dictionary_gc104M.pkl", lambda d: d.update({"ENSG00000004478": median}))
    with pytest.raises(CheckpointError, match=r"medians that are not above 0, for example of \['ENSG00000004478'\]"):
        find_dictionaries(folder, None, V2_TOKENS)


def test_a_gene_without_a_median(folder: Path, spoil: Spoil) -> None:
    spoil(folder / "gene_median_dictionary_gc104M.pkl", lambda d: d.pop("ENSG00000004478"))
    with pytest.raises(CheckpointError) as raised:
        find_dictionaries(folder, None, V2_TOKENS)
    assert "1 genes have a token and no median, for example ['ENSG00000004478']" in str(raised.value)
    assert "copy all from one source" in str(raised.value)


def test_whole_numbers_as_medians_are_refused_by_name(folder: Path, spoil: Spoil) -> None:
    spoil(folder / "gene_median_dictionary_gc104M.pkl", lambda d: d.update({"ENSG00000004478": "1.5"}))
    with pytest.raises(CheckpointError, match=r"gene_median_dictionary_gc104M.pkl is no dictionary from text to float"):
        find_dictionaries(folder, None, V2_TOKENS)


def test_order_of_the_file_does_not_matter() -> None:
    tokens = {"ENSG2": 3, "<mask>": 1, "ENSG1": 2, "<pad>": 0}
    found = Dictionaries.of(tokens, {"ENSG1": 1.5, "ENSG2": 2.5, "ENSG9": 9.5}, {"OLD": "ENSG2", "LOST": "ENSG9"})
    assert found.vocabulary.ensembl_ids == ("ENSG1", "ENSG2")
    assert (found.tokens.tolist(), found.medians.tolist()) == ([2, 3], [1.5, 2.5])
    assert found.vocabulary.alias("old") == 1
    assert found.vocabulary.alias("LOST") is None


# Files that are no dictionaries


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"\x80\x04", b"<!DOCTYPE html>404", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
     b"\x80\x04\x8d" + (2**63).to_bytes(8, "little"), b"\x80\x04\x95" + b"\xff" * 8,
     pickle.dumps(None)[:-1]],
    ids=["empty", "cut", "no content", "web page", "pointer", "huge text", "huge frame", "no end"],
)  # fmt: skip
def test_damaged_files(folder: Path, data: bytes) -> None:
    (folder / "token_dictionary_gc104M.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"token_dictionary_gc104M\.pkl is .*Copy the official file again"):
        find_dictionaries(folder, None, V2_TOKENS)


@pytest.mark.parametrize("content", [[], "text", 5, None, {"a": {"b": 1}}, {"a": None}], ids=str)
def test_other_pickles(folder: Path, content: object) -> None:
    (folder / "token_dictionary_gc104M.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"token_dictionary_gc104M\.pkl is no dictionary from text to int"):
        find_dictionaries(folder, None, V2_TOKENS)


@pytest.mark.parametrize("stem", ["token_dictionary", "gene_median_dictionary", "ensembl_mapping_dict", "gene_name_id_dict"])  # fmt: skip
def test_a_cut_file(folder: Path, stem: str) -> None:
    path = folder / f"{stem}_gc104M.pkl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{stem}_gc104M.pkl is (damaged|refused)"):
        find_dictionaries(folder, None, V2_TOKENS)


def test_whatever_the_damage_the_error_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    original = pickle.dumps({f"ENSG{i}": np.float64(i) for i in range(12)} | {"<pad>": 0}, 4)
    rng = np.random.default_rng(0)
    # These two make Python's own unpickler reserve memory for any number that follows them.
    harmless = sorted(set(range(256)) - {*pickle.LONG_BINPUT, *pickle.BYTEARRAY8})
    unharmed = 0
    for _ in range(600):
        damaged = bytearray(original)
        for place in rng.integers(0, len(damaged), 2):
            damaged[place] = rng.choice(harmless)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(CheckpointError):
            read_pickled(path)
            unharmed += 1
    assert 0 < unharmed < 300


# Hostile files


@pytest.mark.parametrize("stem", ["token_dictionary", "gene_median_dictionary", "ensembl_mapping_dict", "gene_name_id_dict"])  # fmt: skip
def test_nothing_is_executed(folder: Path, bomb: tuple[bytes, Path], stem: str) -> None:
    data, created = bomb
    (folder / f"{stem}_gc104M.pkl").write_bytes(data)
    with pytest.raises(CheckpointError) as raised:
        find_dictionaries(folder, None, V2_TOKENS)
    assert f"{stem}_gc104M.pkl is refused: it asks for " in str(raised.value)
    assert "gene dictionaries hold numbers and text only" in str(raised.value)
    assert not created.exists()


class _Calls:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def _persistent() -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return "outside" if obj == "x" else None

    file = io.BytesIO()
    Pickler(file).dump({"a": "x"})
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({"a": np.ones(3)}), "it asks for numpy.*_reconstruct"),
        (pickle.dumps({"a": _Calls(eval, ("1 + 1",))}), "it asks for builtins.eval"),
        (pickle.dumps({"a": _Calls(getattr, ("", "upper"))}), "it asks for builtins.getattr"),
        (b"\x80\x04\x8c\x05numpy\x8c\x12dtype.__subclasses\x93.", "it asks for numpy.dtype.__subclasses"),
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO\ntR\x8e" + (8).to_bytes(8, "little") + b"12345678tR.",
         "numpy object of type 'O', which is no number"),
        (_persistent(), "persistent"),
    ],
    ids=["array", "eval", "getattr", "dotted", "object", "persistent"],
)  # fmt: skip
def test_other_names_are_not_looked_up(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"is refused: .*{message}"):
        read_pickled(tmp_path / "file.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_numpy_become_pythons_own(tmp_path: Path, protocol: int) -> None:
    numbers = {"a": np.int16(7), "b": np.float64(0.1), "c": np.float32(0.5), "d": np.uint8(3), "e": 2**40, "f": "text"}
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(numbers, protocol))
    if protocol < 3:
        # Python 2's protocols store bytes by a call of a codec, which is no name that the official files need.
        with pytest.raises(CheckpointError, match="it asks for _codecs"):
            read_pickled(tmp_path / "file.pkl")
        return
    found = read_pickled(tmp_path / "file.pkl")
    assert found == {"a": 7, "b": 0.1, "c": 0.5, "d": 3, "e": 2**40, "f": "text"}
    assert {type(value) for value in found.values()} == {int, float, str}


def test_both_module_names_of_numpy(tmp_path: Path) -> None:
    new = pickle.dumps({"a": np.float64(0.1)}, 4)
    assert b"numpy._core.multiarray" in new
    old = new.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
    # The frame is shorter by one.
    old = old[:3] + (int.from_bytes(old[3:11], "little") - 1).to_bytes(8, "little") + old[11:]
    for data in (new, old):
        (tmp_path / "file.pkl").write_bytes(data)
        assert read_pickled(tmp_path / "file.pkl") == {"a": 0.1}
