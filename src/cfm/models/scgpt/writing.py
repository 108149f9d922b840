"""Writing a folder in the official layout: args.json, vocab.json, vocab_mod.json, best_model.pt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cfm._core.resources import atomic_path

from . import files
from .checkpoint import official_tensors
from .module import ScgptNetwork
from .objective import MASKED


def write_folder(
    folder: Path, network: ScgptNetwork, tokens: Sequence[str], modalities: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """Write a model that `ScgptModel.load` reads, and the official code too.

    The weights come last: until they are there, loading names what is missing.

    Parameters
    ----------
    folder
        Made where it is not there.
    network
        The weights.
    tokens, modalities
        The vocabularies in the order of ids.
    settings
        What no tensor tells, for args.json: at least ``pad_token``, ``n_bins`` and ``max_seq_len``.
    """
    layout = network.layout
    args = {
        "input_style": "binned",
        "input_emb_style": layout.values,
        "cell_emb_style": layout.cell,
        "embsize": layout.dim,
        "nheads": layout.heads,
        "d_hid": layout.hidden,
        "nlayers": layout.layers,
        "n_layers_cls": max(layout.class_layers, layout.adversary_layers, 1),
        "dropout": layout.dropout,
        "fast_transformer": True,
        "pre_norm": layout.order == "leading",
        "mask_value": int(MASKED),
        "pad_value": int(files.PAD_VALUE),
        **settings,
    }
    texts = {files.ARGS: args, files.VOCABULARY: {token: i for i, token in enumerate(tokens)}}
    if modalities:
        texts[files.MODALITIES] = {modality: i for i, modality in enumerate(modalities)}
    for name, content in texts.items():
        with atomic_path(folder / name) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in official_tensors(network).items()}
    with atomic_path(folder / files.WEIGHTS[0]) as path:
        torch.save(tensors, path)
