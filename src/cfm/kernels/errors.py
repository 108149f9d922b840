"""What can go wrong between text and a running kernel."""

from __future__ import annotations

from cfm._core.errors import CfmError


class KernelError(CfmError, RuntimeError):
    """A kernel that cannot be compiled, loaded or started."""
