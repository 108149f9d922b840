"""Pretraining a model on one's own cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anndata import AnnData

from cfm._core.errors import OptionError


def pretrain(
    data: AnnData | str | Path | Sequence[str | Path] | None,
    folder: str | Path,
    *,
    recipe: str | Path | None = None,
    data_root: str | Path | None = None,
    labels_key: str | None = None,
    species: str = "human",
    epochs: int | None = None,
) -> Path:
    """Train a masked-gene model of the cfm-mini form and write it to a folder.

    Hidden counts are predicted from visible ones: the loss is minus the sum over hidden genes of log p(x_i | the rest).
    Labels, where there are any, bring cells of one label together across files. An interrupted run goes on from its
    last epoch when the call is repeated with the same folder.

    Parameters
    ----------
    data
        Cells with raw counts: an object, one or several paths of h5ad files, or None for the files that the recipe
        names.
    folder
        Where the model is written. ``cfm.tl.embed(adata, model=folder)`` takes it.
    recipe
        TOML file with all hyper-parameters; None takes those that cfm-mini was trained with.
    data_root
        Folder of the files that a recipe names, where it is not that of the recipe.
    labels_key
        Column of obs with labels, for `data`.
    species
        Species of `data`: ``"human"``, or ``"mouse"`` to read mouse symbols through one-to-one orthologs.
    epochs
        Most epochs, instead of the recipe's.

    Returns
    -------
    The folder: config.json, vocabulary.tsv, weights.safetensors, README.md (the model card), reference.safetensors
    where there were labels, and ``run/`` with checkpoints and losses.

    Raises
    ------
    OptionError
        A recipe that does not hold, data that is missing, or a folder that holds another run.
    MissingKeyError
        No file has the column of labels.
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

    if epochs is not None and epochs < 1:
        raise OptionError(f"epochs={epochs}: training takes at least one.")
    plan = Recipe.read(recipe or PACKAGED, root=data_root)
    if data is None:
        cells = corpus.read_corpus(plan.data, plan.vocabulary)
    else:
        if recipe is None:
            plan = plan.without_corpus(Path(folder).name)
        elif plan.data.files:
            msg = "The recipe names files and data= was given too. Pass data=None, or a recipe without files."
            raise OptionError(msg)
        own = plan.data.model_copy(update={"label_key": labels_key, "root": Path()})
        if isinstance(data, AnnData):
            cells = corpus.corpus_of({"adata": data}, own, plan.vocabulary, species=species)
        else:
            paths = [data] if isinstance(data, str | Path) else data
            files = [SourceFile(path=Path(path), species=species) for path in paths]
            cells = corpus.read_corpus(own.model_copy(update={"files": files}), plan.vocabulary)
    if epochs is not None:
        plan = plan.model_copy(update={"training": plan.training.model_copy(update={"max_epochs": epochs})})
    run.run(cells, plan, Path(folder))
    return Path(folder)
