"""What the wrappers of all ops refuse alike, before the extension sees the arrays."""

__all__ = ["check_context", "flag", "gradients", "loss_gradient", "reduction_of", "several"]


def check_context(called, kind, ctx):
    """Refuse a context that is not one of this op's.

    Parameters
    ----------
    called : str
        The function the user called: "silu_backward".
    kind : type
        The op's Context.
    ctx : object
        What the user gave.

    Raises
    ------
    TypeError
    """
    if not isinstance(ctx, kind):
        raise TypeError(f"{called}(): 'ctx' must be what {called.removesuffix('_backward')}_forward() returned, "
                        f"not {type(ctx)!r}")


def flag(called, name, value):
    """Return ``value`` as a bool.

    Raises
    ------
    TypeError
        It is neither true nor false: an array of several elements, say.
    """
    try:
        return bool(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{called}(): '{name}' must be true or false, not {type(value)!r}") from None


def gradients(called, kind, out, absent=()):
    """Return the arrays to write gradients into, as the op's named tuple; all None where ``out`` is.

    Parameters
    ----------
    called : str
        The function the user called: "silu_backward".
    kind : type
        The op's Gradients.
    out : tuple or None
        What the user gave: an earlier result, or any tuple of arrays in that order.
    absent : sequence of str
        Inputs that forward did not have: they get no gradient.

    Raises
    ------
    TypeError
        ``out`` is no such tuple.
    ValueError
        It holds an array for an input that is absent.
    """
    if out is None:
        return kind()
    fields = kind._fields
    if not isinstance(out, tuple) or len(out) != len(fields) or getattr(out, "_fields", fields) != fields:
        raise TypeError(f"{called}(): 'out' must be a tuple ({', '.join(fields)}) of arrays or None, "
                        f"as {called}() returns it, not {type(out)!r}")
    out = kind(*out)
    for name in absent:
        if getattr(out, name) is not None:
            raise ValueError(f"{called}(): 'out.{name}' must be None, as forward had no '{name}'")
    return out


def reduction_of(called, reduction, *more):
    """Refuse what is no reduction of a loss: "none", "mean", "sum", and ``more`` of them.

    Raises
    ------
    ValueError
    """
    known = ("none", "mean", "sum", *more)
    if not isinstance(reduction, str) or reduction not in known:
        listed = ", ".join(map(repr, known[:-1]))
        raise ValueError(f"{called}(): 'reduction' must be {listed} or {known[-1]!r}, not {reduction!r}")


def loss_gradient(called, dy, reduction):
    """Return the gradient of a loss as (an array or None, a number): the array under "none", else the number.

    Raises
    ------
    TypeError
        It is None.
    """
    if dy is None:
        raise TypeError(f"{called}(): 'dy' must be a number, or an array under 'none', not None")
    return (dy, 1.0) if reduction == "none" else (None, dy)


def several(called, name, given, what):
    """Return what was given for several arrays at once, as many as ``what`` tells, None for each where it is None.

    Parameters
    ----------
    called : str
        The function the user called: "topk".
    name : str
        The argument: "out".
    given : tuple or list of arrays, or None
        What the user gave.
    what : tuple of str
        The arrays in a message: ("values", "indices").

    Raises
    ------
    TypeError
        It is no tuple of that length: an array of so many rows is none.
    """
    if given is None:
        return (None,) * len(what)
    if not isinstance(given, tuple | list) or len(given) != len(what):
        count = {2: "two", 3: "three"}[len(what)]
        raise TypeError(f"{called}(): '{name}' must be a tuple of {count} arrays, for {', '.join(what[:-1])} and "
                        f"{what[-1]}, not {type(given)!r}")
    return given
