"""Runs in a process of its own with TRITON_INTERPRET=1: the Triton kernel against the formula in float64."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

import cfm
from cfm.kernels import composite, ops
from cfm.kernels.plan import plan
from cfm.nn.attention import attention

LENGTHS = [130, 0, 64, 17, 1, 65]
KNOWN = {"none": None, "half": [65, 0, 63, 8, 0, 0], "edges": [128, 0, 64, 16, 1, 65], "zero": [0] * 6}


def main() -> None:
    """Print the largest errors of result and log-sum-exp for each case as JSON."""
    offsets = np.cumsum([0, *LENGTHS]).tolist()
    found = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        q, k, v = torch.randn(offsets[-1], 3, 2, 64, generator=generator).to(dtype).unbind(1)
        for name, known in KNOWN.items():
            made = plan(offsets, None, known, len(q), len(k), q.device, "triton")
            out, lse = ops.varlen_attention(
                q, k, v, made.offsets, None, made.n_known, made.tiles, made.narrow, made.n_wide, 0.125, True, "triton"
            )
            exact = [x.double() for x in (q, k, v)]
            right, right_lse = composite.by_hand(*exact, offsets, offsets, known, 0.125)
            # What torch itself makes of the same 16-bit numbers, to measure ours by.
            plain, _ = composite.with_lse(q, k, v, offsets, offsets, known, 0.125)
            errors = [(out - right).abs().max(), (plain - right).abs().max(), (lse - right_lse).abs().max()]
            found[f"{dtype} {name}"] = [float(x) for x in errors]
    q, k, v = torch.randn(offsets[-1], 3, 2, 64, generator=torch.Generator().manual_seed(1)).unbind(1)
    with cfm.settings.override(attention="triton"), torch.no_grad():
        whole = attention(q, k, v, offsets, n_known=KNOWN["half"])
        firsts = attention(q[[3, 130, 210]], k, v, offsets, q_offsets=[0, 1, 1, 2, 2, 3, 3])
    right = attention(q, k, v, offsets, n_known=KNOWN["half"])
    asked = attention(q[[3, 130, 210]], k, v, offsets, q_offsets=[0, 1, 1, 2, 2, 3, 3])
    found["through nn"] = [float((whole - right).abs().max()), float((firsts - asked).abs().max())]
    # A cell of NaN between two healthy ones.
    sick = [x.clone() for x in (q, k, v)]
    for x in sick:
        x[130:194] = torch.nan
    with cfm.settings.override(attention="triton"), torch.no_grad():
        after = attention(*sick, offsets, n_known=KNOWN["half"])
    healthy = [*range(130), *range(194, offsets[-1])]
    found["neighbours unchanged"] = [float(torch.equal(after[healthy], whole[healthy]))]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
