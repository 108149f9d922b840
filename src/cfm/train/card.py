"""The model card: what a model was made from, and what came out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cfm.models.reference import Reference

from .corpus import UNLABELLED, Corpus
from .recipe import Recipe


def model_card(
    corpus: Corpus, recipe: Recipe, losses: dict[str, float], progress: dict[str, Any], reference: Reference | None
) -> str:
    """Markdown with the data, their licences, the seed, the losses and the reference."""
    rows = [
        f"| {file.name} | {file.counts.shape[0]:,} | {int((file.labels != UNLABELLED).sum()):,} "
        f"| {file.source or 'not stated'} | {file.licence} |"
        for file in corpus.files
    ]
    lines = [
        f"# {recipe.name} {recipe.version}",
        "",
        f"A masked-gene model: {recipe.model.width} hidden units, cell vectors of {recipe.model.dim} numbers, "
        f"{len(corpus.vocabulary):,} human genes. Licence of the weights: {recipe.licence}.",
        "",
        "## Training data",
        "",
        "| file | cells | labelled | repository it came from | licence of that repository |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        f"| all | {corpus.n_cells:,} | | | |",
        "",
        "The licence is that of the repository as a whole, which is mostly software; the terms of the data themselves "
        "were not checked. The weights are numbers fitted to these counts and hold no copy of a file.",
        "",
        "## Training",
        "",
        f"Seed {recipe.training.seed}; {progress['epochs']} epochs of {recipe.training.steps_per_epoch} steps, weights "
        f"of epoch {progress['best_epoch']} (lowest validation loss). Validation: "
        f"{recipe.training.validation_share:.0%} of the cells of every file.",
        "",
        "| validation loss | value |",
        "| --- | --- |",
        *(f"| {name.removeprefix('val_')} | {value:.4f} |" for name, value in sorted(losses.items())),
        "",
        "masked: minus the log-probability of hidden counts given the visible ones, per hidden count, without "
        "log(counts!). contrast: supervised contrastive loss between labels.",
    ]
    if reference is not None:
        sizes = Counter(reference.names[code] for code in reference.codes)
        lines += [
            "",
            "## Reference for annotation",
            "",
            f"{len(reference.codes):,} prototypes of {len(reference.names)} labels: cells where a file has few of a "
            "label, else means of near cells. Ids are those of the Cell Ontology (CC BY 4.0).",
            "",
            "| label | Cell Ontology | prototypes |",
            "| --- | --- | --- |",
            *(
                f"| {name} | {term or '-'} | {sizes[name]} |"
                for name, term in zip(reference.names, reference.ontology_ids, strict=True)
            ),
        ]
    return "\n".join(lines) + "\n"
