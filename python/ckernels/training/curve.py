"""The curve of a training as a picture."""

import numpy as np

__all__ = ["plot_losses"]


def plot_losses(path, curves, *, title="", smooth=20):
    """Draw losses over steps.

    Parameters
    ----------
    path : path
        Of the picture; its ending says which kind (.png, .svg, .pdf).
    curves : dict of str to sequence of float
        The losses of every step from the first, by the name that stands beside the line.
    title : str
    smooth : int
        The thick line is the mean of so many steps, the thin one every step.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        There is nothing to draw.
    """
    if not curves or not all(len(losses) for losses in curves.values()):
        raise ValueError("plot_losses(): 'curves' has a curve without a step, or none at all")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a curve needs matplotlib: pip install 'ckernels[training]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, losses) in enumerate(curves.items()):
        losses, colour = np.asarray(losses, np.float64), f"C{index}"
        steps = np.arange(1, losses.size + 1)
        axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
        width = min(smooth, losses.size)
        means = np.convolve(losses, np.full(width, 1 / width), "valid")
        axes.plot(steps[width - 1 :], means, color=colour, label=label, linewidth=1.8, linestyle=("-", "--")[index % 2])
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
