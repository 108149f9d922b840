"""Embeds and labels the packaged cells with the installed wheel. Run by .ci/run, in an environment and a folder of its own."""

import sys
from pathlib import Path

import cfm

home = Path(cfm.__file__).resolve()
if not home.is_relative_to(Path(sys.prefix).resolve()):
    sys.exit(f"cfm comes from {home}, not from the wheel in {sys.prefix}")

# These load torch and scanpy, so they come after the check.
import numpy as np  # noqa: E402

adata = cfm.datasets.pbmc68k()
cfm.tl.embed(adata)
cfm.tl.annotate(adata)

vectors = adata.obsm["X_cfm"]
if vectors.shape[0] != adata.n_obs or not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
    sys.exit(f"bad embedding from the wheel: shape {vectors.shape} for {adata.n_obs} cells")
if not (home.parent / "py.typed").exists():
    sys.exit("the wheel has no py.typed")
print(
    f"{adata.n_obs} cells, {vectors.shape[1]} dimensions, {adata.obs['cfm_label'].nunique()} labels, from {home.parent}"
)
