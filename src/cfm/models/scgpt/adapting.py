"""From a pretrained network to one that is fine-tuned on several batches, or modalities, of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from cfm._core.errors import OptionError

from .genes import is_special
from .layout import Layout, official_name
from .modalities import is_protein, vocabulary_of
from .module import ScgptNetwork

_ADVERSARY_LAYERS = 3
_GENES = "encoder.embedding.weight"
_RANGE = 0.1
"""Vectors of new features are drawn from -0.1 to 0.1, as those of genes were before pretraining."""


@dataclass(frozen=True)
class Adapted:
    """A network that is ready to be fine-tuned.

    Parameters
    ----------
    network
        With pretrained weights where they fit.
    tokens
        Its vocabulary in the order of ids: what was kept, then new features.
    modalities
        The same for modalities; empty with one.
    fresh
        Tensors that start at random, by their official names.
    """

    network: ScgptNetwork
    tokens: list[str]
    modalities: list[str]
    fresh: tuple[str, ...]


def adapted(
    network: ScgptNetwork,
    tokens: Sequence[str],
    names: Sequence[str],
    *,
    n_batches: int,
    pad: str = "<pad>",
    dropout: float = 0.2,
    zeros: bool = True,
    domains: bool = True,
) -> Adapted:
    """A network over some genes with heads for batches, and the weights of another where name and shape agree.

    The rule is the official one; it leaves the first layers of the decoders at random, which now read labels too. New
    numbers come from torch's generator. The vocabulary is cut to what the cells have: no other vector would change, and
    the folder says by itself which genes the model is for.

    Parameters
    ----------
    network, tokens
        The pretrained network and its vocabulary, in the order of ids.
    names
        Genes of the cells; ``p_...`` are proteins, which may be new. With any, there are two modalities.
    n_batches
        Batches of the cells. With one there is nothing that knows batches.
    pad
        The padding token.
    dropout
        Share set to 0 in training.
    zeros
        Whether heads predict which values are zero.
    domains
        Whether each batch has a norm of the input.

    Raises
    ------
    OptionError
        The network is of a kind that cannot be fine-tuned so, or a name is unknown to it.
    """
    _check(network.layout)
    known, wanted = set(tokens), list(dict.fromkeys(names))
    new = [name for name in wanted if name not in known]
    if unknown := [name for name in new if not is_protein(name)]:
        msg = f"{len(unknown)} of {len(wanted)} genes are not in the vocabulary of {len(tokens):,}: {unknown[:5]}. Leave them out"
        raise OptionError(f"{msg}; new features are proteins, whose names begin with p_.")
    chosen = set(wanted)
    rows = [i for i, token in enumerate(tokens) if token in chosen or is_special(token)]
    modalities = vocabulary_of(pad) if any(map(is_protein, wanted)) else []
    kept = [*(tokens[i] for i in rows), *new]
    layout = _layout(network.layout, len(kept), n_batches if n_batches > 1 else 0, len(modalities), zeros, domains)
    made = ScgptNetwork(replace(layout, dropout=dropout))
    fresh = _take(made, network, rows)
    return Adapted(made, kept, modalities, (*map(official_name, fresh), *new))


def _check(layout: Layout) -> None:
    if layout.n_perturbations:
        raise OptionError("This model predicts perturbations and has no cell vector. Fine-tune from a pretrained one.")
    if layout.values != "continuous":
        msg = f"This model takes values as {layout.values!r}: it has no input for a hidden value."
        raise OptionError(f"{msg} Fine-tune from one with input_emb_style 'continuous', as all published ones are.")


def _layout(base: Layout, n_tokens: int, n_batches: int, n_modalities: int, zeros: bool, domains: bool) -> Layout:
    labelled = n_batches > 0 or n_modalities > 0
    n_domains = n_batches if domains else 0
    return replace(
        base,
        n_tokens=n_tokens,
        flags=False,  # nothing is generated, and the official class has no such tensor
        n_batches=n_batches,
        n_modalities=n_modalities,
        input_norm=base.input_norm and not n_domains,
        n_domains=n_domains,
        domain_affine=False,
        decoder_labels=labelled,
        decoder_zeros=zeros,
        query="inner product",
        query_zeros=zeros,
        # The official class for several modalities puts labels beside the genes as well.
        query_genes_labelled=n_modalities > 0,
        query_cells_labelled=labelled,
        n_classes=0,
        class_layers=0,
        n_adversary=n_batches,
        adversary_layers=_ADVERSARY_LAYERS if n_batches else 0,
    )


@torch.no_grad()
def _take(made: ScgptNetwork, base: ScgptNetwork, rows: list[int]) -> list[str]:
    """Copy what fits; names of what does not."""
    found, target = base.state_dict(), made.state_dict()
    nn.init.uniform_(target[_GENES], -_RANGE, _RANGE)
    target[_GENES][: len(rows)] = found.pop(_GENES)[rows].cpu()
    fits = [name for name, tensor in target.items() if name in found and found[name].shape == tensor.shape]
    for name in fits:
        target[name].copy_(found[name])
    return sorted(target.keys() - {*fits, _GENES})
