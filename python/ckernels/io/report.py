"""What became of every tensor of a model file."""

import dataclasses

__all__ = ["TensorReport"]


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """Where the parameters of a loaded model came from.

    Attributes
    ----------
    path : str
        The file or folder.
    loaded : dict
        Parameter name -> (name in the file, stored type).
    tied : dict
        Parameter name -> the parameter whose array it is.
    ignored : tuple of str
        Tensors of the file that carry no parameter and change nothing, such as a stored rotary table.

    Missing tensors and tensors left over are never reported here: they are errors.
    """

    path: str
    loaded: dict
    tied: dict
    ignored: tuple = ()

    def __str__(self):
        """Return one line: how many of what."""
        types = sorted({kind for _, kind in self.loaded.values()})
        line = f"{self.path}: {len(self.loaded)} tensors loaded ({', '.join(types)})"
        if self.tied:
            line += "; " + ", ".join(f"{name} tied to {other}" for name, other in self.tied.items())
        if self.ignored:
            line += f"; ignored: {', '.join(self.ignored)}"
        return line
