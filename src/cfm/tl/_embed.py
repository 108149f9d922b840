"""Cell vectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from anndata import AnnData

from cfm import infer, models
from cfm._core import records
from cfm._core.errors import MissingKeyError, OptionError, UnsupportedOutput
from cfm._core.inputs import announce_overwrite, chosen_key, writable
from cfm._core.logging import logger
from cfm._core.settings import settings
from cfm.counts import as_csr, in_memory
from cfm.genes import Coverage, match
from cfm.models import CellModel

_FEW_GENES = 0.3
"""Below this share of its genes, transfer from labelled cells was seen to lose a fifth of its accuracy and more."""


def embed(
    adata: AnnData,
    *,
    model: str | Path = "cfm-mini",
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    gene_table: str | Path | Mapping[str, str] | None = None,
    tokens: str | None = None,
    genes: bool | Literal["static", "contextual"] = False,
    device: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> AnnData | None:
    """Give each cell a vector from a foundation model.

    The vector of a cell depends on that cell alone: not on the other cells, their order, the storage of the matrix,
    the order of the genes, the chunk size or the number of threads. (Where a family repeats an official behaviour
    that is otherwise, its page says so: Geneformer leaves genes of equal rank in the order of the columns.)

    Parameters
    ----------
    adata
        Cells x genes with raw counts somewhere: in memory, backed, or lazy. X, layers, raw and var are not changed.
    model
        A name in `cfm.models.list`, or a folder that holds a checkpoint.
    layer
        Layer with the raw counts (``"X"`` for X, ``"raw"`` for raw). None looks at X, then ``raw``, then the layers ``"counts"``,
        ``"raw"`` and ``"raw_counts"``, and takes the first that holds non-negative whole numbers.
    gene_column
        Column of ``var`` with symbols or Ensembl ids (``"var_names"`` for the index). None tries all.
    species
        Species of the data; None takes the model's. ``"mouse"`` reads mouse symbols through one-to-one orthologs; UCE
        has genes of its own for eight species.
    gene_table
        Your own table, a file of two columns or a dictionary: name in the data, human symbol or Ensembl id.
    tokens
        Key in ``obsm`` where `cfm.pp.tokenize` stored this model's tokens; the counts are then not looked at.
    genes
        Also write a vector for every gene that the model knows. True or ``"static"``: the one that it was trained
        to, which no cell changes. ``"contextual"``: the mean of the gene's vectors in the cells that express it, for
        models whose tokens are genes; in all cells, for models that see every gene in each.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``...; None takes `cfm.settings.device`.
    key_added
        Key of the vectors and of the record instead of ``"X_cfm"``; the gene number goes to
        ``key_added + "_n_genes"``, gene vectors to ``key_added + "_genes"``.
    copy
        Return a copy with the results instead of writing to `adata`.
    **options
        Options of the model's family, such as ``emb_layer=`` of Geneformer. An unknown one is an error that lists
        those that there are.

    Returns
    -------
    None, or with ``copy=True`` the new object. Written:

    ``obsm["X_cfm"]`` : float32, n_obs x dim
        Cell vectors (of length 1 for cfm-mini). A cell in which the model finds nothing to read gets a row of zeros,
        and a warning counts them.
    ``obs["cfm_n_genes"]`` : int32
        Genes of the cell that the model read.
    ``varm["cfm_genes"]`` : float32, n_vars x dim
        With ``genes=``: gene vectors, NaN for genes that the model does not know, or that no cell expresses.
    ``uns["cfm"]["X_cfm"]`` : dict
        What was used: place of the counts, gene column, coverage, model, digest of its weights, device.

    Raises
    ------
    CountsError
        No raw counts where they were looked for.
    GeneMatchError
        Too few genes are known to the model; the message names the likely cause.
    MissingKeyError
        No such layer, column of ``var``, or stored tokens.
    OptionError
        No such device or option, no orthologs for `species`, or tokens of another model.
    UnsupportedOutput
        The model gives no cell vectors, or no contextual gene vectors.
    UnknownModelError, CheckpointError, DownloadError
        The model does not exist, its folder is damaged, or its files cannot be had.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.pbmc68k()
    >>> cfm.tl.embed(adata)
    >>> adata.obsm["X_cfm"].shape, adata.obsm["X_cfm"].dtype
    ((700, 128), dtype('float32'))
    """
    adata = writable(adata, copy)
    key = chosen_key(key_added, records.EMBEDDING)
    contextual = _is_contextual(genes)
    loaded = models.load(model, device=device, species=species or _species_of(adata, tokens), **options)
    if contextual and not loaded.spec.outputs & {"token", "gene"}:
        raise UnsupportedOutput(f"{loaded.spec.name} has no vector for a gene in its cell. Type genes='static'.")
    made_with: dict[str, Any] = {}
    if tokens is None:
        prepared = infer.prepare(
            adata, loaded, layer=layer, gene_column=gene_column, species=species, gene_table=gene_table
        )
        result = infer.run(loaded, prepared.stream, adata.n_obs, settings.pack_tokens, genes=contextual)
        logger.info("embed: %s", prepared)
        _warn_of_few_genes(prepared.coverage())
        facts = prepared.facts()
    else:
        batches = _stored(adata, tokens, loaded)
        made = adata.uns[records.UNS][tokens].get("options", {})
        if "compat" in made and "compat" not in options:  # it decides about more than tokens
            loaded = models.load(
                model,
                device=device,
                species=species or _species_of(adata, tokens),
                **options,
                compat=str(made["compat"]),
            )
        result = infer.run(loaded, batches, adata.n_obs, settings.pack_tokens, genes=contextual)
        logger.info("embed: tokens from obsm[%r]; %s on %s", tokens, loaded.spec.name, loaded.device)
        made_with = _token_options(adata, tokens, loaded, options)
        facts = adata.uns[records.UNS][tokens] | {"device": str(loaded.device), "tokens": tokens}
        gene_column, species = gene_column or facts["gene_column"], species or facts["species"]

    # All that can fail comes before the first result is written.
    known = result.gene_means if contextual else loaded.gene_vectors() if genes else None
    gene_vectors = None if known is None else _of_columns(known, adata, loaded, gene_column, species, gene_table)
    announce_overwrite(adata, "obsm", key)
    adata.obsm[key] = result.vectors
    n_genes = records.N_GENES if key_added is None else f"{key_added}_n_genes"
    announce_overwrite(adata, "obs", n_genes)
    adata.obs[n_genes] = result.lengths.astype(np.int32)
    if gene_vectors is not None:
        genes_key = records.GENE_VECTORS if key_added is None else f"{key_added}_genes"
        announce_overwrite(adata, "varm", genes_key)
        adata.varm[genes_key] = gene_vectors
    if n_empty := int((result.lengths == 0).sum()):
        logger.warning(
            "%d of %d cells have no gene that the model reads; their vectors are zero. Leave them out with "
            "adata[adata.obs[%r] > 0]",
            n_empty,
            adata.n_obs,
            n_genes,
        )
    _say_poor(result.lengths, loaded, n_genes)
    records.write_record(
        adata.uns, key, records.make_record("cfm.tl.embed", **(facts | {"options": made_with | options or None}))
    )
    return adata if copy else None


def _is_contextual(genes: bool | str) -> bool:
    if genes not in (True, False, "static", "contextual"):
        raise OptionError(f"genes={genes!r}: type True or 'static', 'contextual', or False.")
    return genes == "contextual"


def _warn_of_few_genes(coverage: Coverage) -> None:
    share = coverage.n_vocabulary_matched / coverage.n_vocabulary
    if share < _FEW_GENES:
        logger.warning(
            "only %s of the model's %s genes are in this object: it looks subset to variable genes or a panel. Vectors "
            "and labels get less reliable; use the object before the subsetting if there is one",
            f"{coverage.n_vocabulary_matched:,}",
            f"{coverage.n_vocabulary:,}",
        )


def _say_poor(lengths: np.ndarray[Any, np.dtype[np.int64]], model: CellModel, n_genes: str) -> None:
    """Count the cells that are poorer than those of the training."""
    least = model.spec.min_genes
    if n_poor := int(((lengths > 0) & (lengths < least)).sum()):
        logger.warning(
            "%d of %d cells have fewer than %d genes that %s reads, which its authors leave out. They are kept; their vectors "
            "are less reliable. Leave them out with adata[adata.obs[%r] >= %d]",
            n_poor,
            len(lengths),
            least,
            model.spec.name,
            n_genes,
            least,
        )


def _stored(adata: AnnData, key: str, model: CellModel) -> Any:
    """The token batches that `cfm.pp.tokenize` left in an object, if they are this model's."""
    if key not in adata.obsm:
        msg = f"obsm has no {key!r}. It has {sorted(adata.obsm)}; cfm.pp.tokenize(adata, model=...) writes it."
        raise MissingKeyError(msg)
    record = adata.uns.get(records.UNS, {}).get(key, {})
    if record.get("model_digest") != model.spec.digest:
        made_for = record.get("model", "no recorded model")
        msg = (
            f"The tokens in obsm[{key!r}] were made for {made_for}, not for {model.spec.name} "
            f"({model.spec.digest}). Run cfm.pp.tokenize(adata, model={model.spec.name!r}) again."
        )
        raise OptionError(msg)
    values_key = record.get("values_key")
    if values_key and values_key not in adata.obsm:
        raise MissingKeyError(
            f"obsm has {key!r} but not {values_key!r}, which belongs to it. Run cfm.pp.tokenize again."
        )
    values = as_csr(adata.obsm[values_key]) if values_key else None
    columns = infer.obs_columns(adata, model)
    return infer.stored_tokens(as_csr(adata.obsm[key]), values, settings.chunk_cells, columns)


def _species_of(adata: AnnData, tokens: str | None) -> str | None:
    """The species for which stored tokens were made."""
    record = adata.uns.get(records.UNS, {}).get(tokens, {})
    return str(record["species"]) if "species" in record else None


def _token_options(adata: AnnData, key: str, model: CellModel, options: dict[str, Any]) -> dict[str, Any]:
    """The options with which stored tokens were made; others that would have made other tokens are an error."""
    made = dict(adata.uns[records.UNS][key].get("options", {}))
    given = records.make_record("", **{name: options[name] for name in model.token_options & options.keys()})
    for name in model.token_options & given.keys():
        if name not in made or str(given[name]) != str(made[name]):
            how = f"with {name}={made[name]!r}" if name in made else f"without {name}="
            msg = f"The tokens in obsm[{key!r}] were made {how}, and {name}={given[name]!r} would make others."
            raise OptionError(f"{msg} Leave it out, or run cfm.pp.tokenize again.")
    return made


def _of_columns(
    known: np.ndarray[Any, np.dtype[np.float32]],
    adata: AnnData,
    model: CellModel,
    gene_column: str | None,
    species: str | None,
    gene_table: str | Path | Mapping[str, str] | None,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A row for each gene of ``var``."""
    tokens = genes_of_var(adata, model, gene_column, species, gene_table)
    vectors = np.full((adata.n_vars, known.shape[1]), np.nan, np.float32)
    vectors[tokens >= 0] = known[tokens[tokens >= 0]]
    return vectors


def genes_of_var(
    adata: AnnData,
    model: CellModel,
    gene_column: str | None,
    species: str | None,
    gene_table: str | Path | Mapping[str, str] | None,
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Which gene of the model each gene of ``var`` is, or -1. The genes of the counts are others if these are in ``raw``."""
    table = infer.read_table(gene_table)
    # These genes need not be many: the floor was for the genes of the counts.
    return match(
        in_memory(adata.var),
        model.vocabulary,
        gene_column=gene_column,
        species=species,
        gene_table=table,
        min_genes=0,
    ).tokens
