"""A gradient's second opinion: differences of our own forward, summed in double.

In float32 alone: a forward rounded to 16 bits is a staircase, whose differences say nothing of its slope.  The 16-bit
gradients are the same code over other loads and stores, and are compared with float64.
"""
import numpy as np


def assert_gradient(forward, x, dx, dy, rng, *, step=2.0**-6):
    """Assert that <dx, v> is the derivative of <dy, forward(x)> along a random v.

    Two steps give the derivative and, by their disagreement, its uncertainty; the roundings of ``forward`` add two ulp
    of its largest result each.  A test that could not tell a wrong term of one percent fails.
    """
    assert x.dtype == dx.dtype == np.float32, "differences of a 16-bit forward are too coarse to show anything"
    v = rng.choice([-1.0, 1.0], x.shape)
    scale = step * max(float(np.abs(x).max()), 1e-30)
    moved = []

    def slope(h):
        up, down = (x + h * v).astype(np.float32), (x - h * v).astype(np.float32)
        moved.append(np.abs(up.astype(np.float64) - down - 2 * h * v).max() / (2 * h))
        difference = np.asarray(forward(up), np.float64) - np.asarray(forward(down), np.float64)
        return float(np.sum(np.asarray(dy, np.float64) * difference)) / (2 * h)

    coarse, fine = slope(scale), slope(scale / 2)
    best = fine + (fine - coarse) / 3
    given = np.asarray(dx, np.float64)
    roundings = 2 * np.finfo(np.float32).eps * float(np.abs(forward(x)).max()) * float(np.abs(dy).sum()) / scale
    uncertainty = abs(best - fine) + roundings + max(moved) * float(np.abs(given).sum())
    size = float(np.sqrt(np.sum(given**2)))  # <dx, v> of a random v
    assert uncertainty < 0.1 * size, f"differences are uncertain by {uncertainty:.3g} of {size:.3g}: they show nothing"
    assert abs(float(np.sum(given * v)) - best) <= uncertainty
