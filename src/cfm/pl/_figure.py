"""Making a figure that a notebook shows once."""

from __future__ import annotations

from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches.

    It comes from pyplot, so that a notebook knows how to draw it, and is closed at once, so that it is drawn where it
    is returned and not a second time at the end of the cell.
    """
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure
