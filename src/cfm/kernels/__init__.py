"""Attention over ragged cells as operators of torch, with kernels of our own below and the CPU everywhere.

`ops` has the operators, `backends` says which of several ways computes a call and why, `ragged` checks where cells
begin and end and cuts them into tiles. `compiler` and `cache` make machine code from the text in ``cuda/``, `launch`
runs it, `twin` is the same in Triton. Nothing here knows a model.
"""
