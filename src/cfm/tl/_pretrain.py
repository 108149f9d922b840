"""Pretraining a model on one's own cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anndata import AnnData

from cfm._core.errors import OptionError


def pretrain(
    data: AnnData | Sequence[str | Path] | None,
    folder: str | Path,
    *,
    recipe: str | Path | None = None,
    data_root: str | Path | None = None,
    labels_key: str | None = None,
    epochs: int | None = None,
) -> Path:
    """Train a masked-gene model of the cfm-mini form and write it to a folder.

    Hidden counts are predicted from visible ones: the loss is minus the sum over hidden genes of log p(x_i | the rest).
    Labels, where there are any, bring cells of one label together across files. An interrupted run goes on from its
    last epoch when the call is repeated with the same folder.

    Parameters
    ----------
    data
        Cells with raw counts: an object, paths of h5ad files, or None for the files that the recipe names.
    folder
        Where the model is written. ``cfm.tl.embed(adata, model=folder)`` takes it.
    recipe
        TOML file with all hyper-parameters; None takes the one that cfm-mini was trained with.
    data_root
        Folder of the files that a recipe names, where it is not that of the recipe.
    labels_key
        Column of obs with labels, for `data`.
    epochs
        Most epochs, instead of the recipe's.

    Returns
    -------
    The folder: config.json, vocabulary.tsv, weights.safetensors, README.md (the model card), reference.safetensors
    where there were labels, and ``run/`` with checkpoints and losses.

    Raises
    ------
    OptionError
        A recipe that does not hold, or data that is missing.
    CountsError, GeneMatchError
        As in `cfm.tl.embed`.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.pbmc68k()
    >>> folder = cfm.tl.pretrain(adata, "my_model", labels_key="cell_type", epochs=1)  # doctest: +SKIP
    >>> cfm.tl.embed(adata, model=folder)  # doctest: +SKIP
    """
    # Lightning and its callbacks take seconds to import, and only training needs them.
    from cfm.train import corpus, run
    from cfm.train.recipe import PACKAGED, Recipe, SourceFile

    plan = Recipe.read(recipe or PACKAGED, root=data_root)
    if epochs is not None:
        plan = plan.model_copy(update={"training": plan.training.model_copy(update={"max_epochs": epochs})})
    if data is not None:
        if plan.data.files and recipe is not None:
            raise OptionError(
                "The recipe names files and data= was given too. Pass data=None, or a recipe without files."
            )
        own: dict[str, object] = {
            "label_key": labels_key,
            "label_table": None,
            "files": [],
            "marker_rules": [],
            "root": Path(),
        }
        plan = plan.model_copy(update={"data": plan.data.model_copy(update=own)})
    if isinstance(data, AnnData):
        cells = corpus.corpus_of([data], plan.data, plan.vocabulary)
    else:
        if data is not None:
            files = [SourceFile(path=Path(path)) for path in data]
            plan = plan.model_copy(update={"data": plan.data.model_copy(update={"files": files})})
        cells = corpus.read_corpus(plan.data, plan.vocabulary)
    run.run(cells, plan, Path(folder))
    return Path(folder)
