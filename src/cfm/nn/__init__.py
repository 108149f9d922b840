"""Parts of networks that several families share. Tensors only: no files, no family names."""
