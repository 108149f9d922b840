"""One space for batches and modalities, trained on the cells at hand with scvi-tools (seconds to import)."""
