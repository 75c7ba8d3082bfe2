"""Arrays out of .npy, .npz and .safetensors files, by name."""

import pathlib


class FileError(ValueError):
    """A file is not there, or holds no arrays that can be read; the text names it."""


def read_arrays(path):
    """Read {name: array} of a .npy, .npz or .safetensors file, or of all such files in a folder."""
    import numpy as np

    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".npy", ".npz", ".safetensors"))
        if not files:
            raise FileError(f"{path}: no .npy, .npz or .safetensors file in this folder")
        arrays = {}
        for file in files:
            for name, array in read_arrays(file).items():
                name = file.stem if file.suffix == ".npy" else name
                if name in arrays:
                    raise FileError(f"{file}: '{name}' is in another file of the folder too")
                arrays[name] = array
        return arrays
    if not path.is_file():
        raise FileError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in (".npy", ".npz"):
        raise FileError(f"{path}: neither .npy, .npz nor .safetensors")
    try:
        loaded = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            with loaded:
                return {name: loaded[name] for name in loaded.files}
        return {"array": loaded}
    except Exception as error:  # zip, header and data errors have many types; all mean the file is unreadable
        raise FileError(f"{path}: {error or type(error).__name__}") from None


def _read_safetensors(path):
    try:
        import ml_dtypes  # noqa: F401  (gives NumPy the bfloat16 that the reader asks for)
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise FileError(f"{path}: reading it needs {error.name}: pip install 'ckernels[parity]'") from None
    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise FileError(f"{path}: {error}") from None
