"""Settings that hold for one command."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from cfm._core.settings import settings


@contextlib.contextmanager
def session(args: argparse.Namespace) -> Iterator[None]:
    """Apply the common options, and put everything back afterwards."""
    with contextlib.ExitStack() as stack:
        verbosity = "warning" if args.quiet else "debug" if args.verbose else settings.verbosity
        # A bar redraws itself by carriage returns, which fill the log file of a cluster job with one long line.
        progress = settings.progress and sys.stderr.isatty() and not (args.quiet or args.no_progress)
        stack.enter_context(settings.override(verbosity=verbosity, progress=progress))
        if args.threads is not None:
            stack.enter_context(settings.override(threads=args.threads))
            stack.enter_context(_limited(args.threads))
        yield


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    """Hold torch, and the BLAS and OpenMP of the others, to a number of threads."""
    import sklearn  # noqa: F401 -- only libraries that are loaded already can be limited
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)
