"""What a scGPT checkpoint is, told by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cfm.nn.encoder import NormOrder

from .heads import QueryStyle

ValueStyle = Literal["continuous", "category", "scaling"]
CellStyle = Literal["cls", "avg-pool", "w-pool"]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """The parts of a network and their sizes; 0 and None where a part is not there.

    Parameters
    ----------
    n_tokens
        Rows of the gene embedding.
    dim, heads, hidden, layers
        Sizes of the encoder.
    values
        How a value becomes a vector: through two layers, by a table, or as a factor on the gene's vector.
    n_values
        Rows of that table.
    flags
        Whether there is a vector that stands for an unknown value (generative pretraining).
    n_batches, n_modalities, n_perturbations
        Rows of these tables.
    input_norm
        A norm over all tokens.
    n_domains, domain_affine
        Norms for each batch of cells, and whether they learn scale and shift.
    affine
        Whether the decoder draws a line for each token (perturbation).
    decoder_labels
        Whether labels stand beside the tokens that are decoded.
    decoder_zeros, query_zeros
        Whether these heads predict zeros too.
    query
        How the decoder from the cell vector joins gene and cell.
    query_genes_labelled, query_cells_labelled
        Whether labels stand beside the genes and beside the cell there.
    n_classes, class_layers
        Sizes of the classifier of cells.
    n_adversary, adversary_layers
        Sizes of the discriminator of batches.
    cell
        How the vector of a cell is taken from its tokens.
    order
        Where the norms of a layer stand.
    dropout
        Share set to 0 in training.
    """

    n_tokens: int
    dim: int
    heads: int
    hidden: int
    layers: int
    values: ValueStyle = "continuous"
    n_values: int = 0
    flags: bool = False
    n_batches: int = 0
    n_modalities: int = 0
    n_perturbations: int = 0
    input_norm: bool = False
    n_domains: int = 0
    domain_affine: bool = False
    affine: bool = False
    decoder_labels: bool = False
    decoder_zeros: bool = False
    query: QueryStyle | None = None
    query_zeros: bool = False
    query_genes_labelled: bool = False
    query_cells_labelled: bool = False
    n_classes: int = 0
    class_layers: int = 0
    n_adversary: int = 0
    adversary_layers: int = 0
    cell: CellStyle = "cls"
    order: NormOrder = "post"
    dropout: float = 0.0


FUSED, THIRDS = "qkv", ("query", "key", "value")
"""What files have in one tensor and the network in three."""

_LAYER = re.compile(r"^transformer_encoder\.layers\.(\d+)\.(.*)$")
_IN_LAYER = (
    # Four spellings of one tensor: flash-attn, release 0.2.5, and torch's own layer. The numbers are the same.
    (re.compile(r"^self_attn\.(?:_impl\.)?(?:Wqkv\.|in_proj_)"), "qkv."),
    (re.compile(r"^self_attn\.(?:_impl\.)?out_proj\."), "out."),
    (re.compile(r"^linear1\."), "up."),
    (re.compile(r"^linear2\."), "down."),
)


def our_name(name: str) -> str:
    """The name in our network of a tensor of an official file, in any of its spellings.

    Examples
    --------
    >>> our_name("module.transformer_encoder.layers.3.self_attn.in_proj_bias")
    'layers.3.qkv.bias'
    >>> our_name("decoder.fc.0.weight")
    'decoder.fc.0.weight'
    """
    name = name.removeprefix("module.")
    if found := _LAYER.match(name):
        inside = found[2]
        for pattern, ours in _IN_LAYER:
            inside = pattern.sub(ours, inside)
        return f"layers.{found[1]}.{inside}"
    return name


def official_name(name: str) -> str:
    """The usual name in official files of a tensor of our network.

    Examples
    --------
    >>> official_name("layers.3.qkv.bias")
    'transformer_encoder.layers.3.self_attn.Wqkv.bias'
    """
    if not name.startswith("layers."):
        return name
    for ours, theirs in (*((f"{part}.", "self_attn.Wqkv.") for part in (FUSED, *THIRDS)), ("out.", "self_attn.out_proj."), ("up.", "linear1."),
                         ("down.", "linear2.")):  # fmt: skip
        name = name.replace(f".{ours}", f".{theirs}")
    return f"transformer_encoder.{name}"


def layout_of(
    shapes: Shapes,
    *,
    heads: int,
    values: ValueStyle | None = None,
    cell: CellStyle = "cls",
    order: NormOrder = "post",
    dropout: float = 0.0,
) -> Layout:
    """The layout that tensors of these names (ours) and shapes belong to.

    What cannot be told apart by the tensors is given: number of heads, pooling, order of norms, dropout. A tensor that
    is missing does not change the layout unless its whole part is, so that loading will name it.

    Parameters
    ----------
    shapes
        Shape by name, with at least ``encoder.embedding.weight``.
    heads, cell, order, dropout
        As in `Layout`.
    values
        As in `Layout`; None goes by the tensors.
    """
    n_tokens, dim = shapes["encoder.embedding.weight"]

    def rows(name: str) -> int:
        return shapes.get(name, (0,))[0]

    def columns(name: str) -> int:
        shape = shapes.get(name, ())
        return shape[1] if len(shape) == 2 else 0

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in shapes)

    if values is None:
        values = "scaling"
        if has("value_encoder."):
            values = "category" if has("value_encoder.embedding.") else "continuous"
    return Layout(
        n_tokens=n_tokens,
        dim=dim,
        heads=heads,
        hidden=rows("layers.0.up.weight") or dim,
        layers=_count(shapes, r"layers\.(\d+)\."),
        values=values,
        n_values=rows("value_encoder.embedding.weight") if values == "category" else 0,
        flags=has("flag_encoder."),
        n_batches=rows("batch_encoder.embedding.weight"),
        n_modalities=rows("mod_encoder.embedding.weight"),
        n_perturbations=rows("pert_encoder.weight"),
        input_norm=has("bn."),
        n_domains=_count(shapes, r"dsbn\.bns\.(\d+)\."),
        domain_affine="dsbn.bns.0.weight" in shapes,
        affine=has("decoder.coeff_decoder.") or has("decoder.bias_decoder."),
        decoder_labels=columns("decoder.fc.0.weight") == 2 * dim,
        decoder_zeros=has("decoder.zero_logit.") or has("decoder.coeff_decoder.zero_logit."),
        query=_query(shapes),
        query_zeros=has("mvc_decoder.W_zero_logit."),
        query_genes_labelled=columns("mvc_decoder.gene2query.weight") == 2 * dim,
        query_cells_labelled=_query_cell_dim(shapes) == 2 * dim,
        n_classes=rows("cls_decoder.out_layer.weight"),
        class_layers=_linear_layers(shapes, "cls_decoder"),
        n_adversary=rows("grad_reverse_discriminator.out_layer.weight"),
        adversary_layers=_linear_layers(shapes, "grad_reverse_discriminator"),
        cell=cell,
        order=order,
        dropout=dropout,
    )


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number in names of this form: a gap is for loading to name."""
    found = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _linear_layers(shapes: Shapes, head: str) -> int:
    """Linear layers of a classifier: each but the last takes three places, with activation and norm."""
    if f"{head}.out_layer.weight" not in shapes:
        return 0
    return -(-_count(shapes, rf"{head}\._decoder\.(\d+)\.") // 3) + 1


def _query(shapes: Shapes) -> QueryStyle | None:
    if not any(name.startswith("mvc_decoder.") for name in shapes):
        return None
    if "mvc_decoder.fc1.weight" not in shapes:
        return "inner product"
    into, query = shapes["mvc_decoder.fc1.weight"][1], shapes.get("mvc_decoder.gene2query.weight", (0,))[0]
    return "sum query" if into == query else "concat query"


def _query_cell_dim(shapes: Shapes) -> int:
    if "mvc_decoder.W.weight" in shapes:
        return shapes["mvc_decoder.W.weight"][0]
    if _query(shapes) == "concat query":
        return shapes["mvc_decoder.fc1.weight"][1] - shapes.get("mvc_decoder.gene2query.weight", (0,))[0]
    return 0
