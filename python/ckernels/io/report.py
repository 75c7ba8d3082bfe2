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
    changed : dict
        Parameter name -> what was done to the tensor: transposed, or a part of it taken.

    Missing tensors and tensors left over are never reported here: they are errors.
    """

    path: str
    loaded: dict
    tied: dict
    ignored: tuple = ()
    changed: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        """Return one line: how many of what."""
        types = sorted({kind for _, kind in self.loaded.values()})
        count = len({source for source, _ in self.loaded.values()})
        line = f"{self.path}: {count} tensors loaded ({', '.join(types)})"
        if self.changed:
            turned = sum("transposed" in how for how in self.changed.values())
            parts = sum(how != "transposed" for how in self.changed.values())
            line += f"; {parts} parameters are parts of one, {turned} transposed"
        if self.tied:
            line += "; " + ", ".join(f"{name} tied to {other}" for name, other in self.tied.items())
        if self.ignored:
            line += f"; ignored: {', '.join(self.ignored)}"
        return line
