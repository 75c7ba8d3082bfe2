"""The test build of the kernels, in which faults can be planted: where it is, and how it is made.

``csrc/faults.def`` lists the faults. The build is the extension with CK_FAULTS, of one instruction set; it is made from
a checkout of the sources and kept in the cache folder under the hash of what it was made from.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

#: Environment that changes what is compiled.
_COMPILER = ("CC", "CK_CFLAGS", "CK_WERROR")

#: What the compiler calls the dtypes.
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class BuildError(Exception):
    """There is no source, or no compiler, or it failed; the text says which."""


def checkout(given=None):
    """Find the sources.

    Parameters
    ----------
    given : path, optional
        A checkout; otherwise the one this package is imported from, or the working directory.

    Returns
    -------
    Path

    Raises
    ------
    BuildError
        None of them is one.
    """
    places = [Path(given)] if given else [Path(__file__).resolve().parents[3], Path.cwd()]
    for place in places:
        if (place / "csrc" / "faults.def").is_file() and (place / "setup.py").is_file():
            return place.resolve()
    raise BuildError(
        f"{' and '.join(map(str, places))}: no checkout of the sources (csrc/faults.def and setup.py); the test build "
        "is compiled from one: --source DIR"
    )


def listed(source):
    """The faults of csrc/faults.def: what is wrong, by name."""
    text = (Path(source) / "csrc" / "faults.def").read_text()
    return dict(re.findall(r'^CK_PLANT\((\w+), "([^"]+)"\)', text, re.M))


def _key(source, *chosen):
    """Hash of everything that goes into the build."""
    total = hashlib.sha256(repr([chosen, sys.version, *map(os.environ.get, _COMPILER)]).encode())
    for path in [source / "setup.py", *sorted((source / "csrc").rglob("*.*"))]:
        total.update(str(path.relative_to(source)).encode() + path.read_bytes())
    return total.hexdigest()[:16]


def made(source, isa, dtypes=tuple(_DTYPES), tell=lambda text: None):
    """Return the folder with the test build, ``_ck.so``; it is built where the cache has none of these sources.

    Parameters
    ----------
    source : Path
        From :func:`checkout`.
    isa : str
        The instruction set whose kernels get faults.
    dtypes : tuple of str
        The dtypes whose kernels get them.
    tell : callable
        Told what takes a while.

    Raises
    ------
    BuildError
        No compiler, no setuptools, or an error of the compiler.
    """
    cache = Path(os.environ.get("CK_CACHE_DIR") or Path.home() / ".cache/ckernels") / "faults"
    wanted = ",".join(_DTYPES[dtype] for dtype in dtypes)
    folder = cache / _key(source, isa, wanted)
    if (folder / "_ck.so").is_file():
        return folder
    compiler = os.environ.get("CC", "cc").split()[0]
    if shutil.which(compiler) is None:
        raise BuildError(f"no compiler: {compiler} is not on the path (CC= names another)")
    if importlib.util.find_spec("setuptools") is None:
        raise BuildError("no setuptools: pip install setuptools")
    tell(f"compiling the test build for {isa}")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_faults",
        "--isa",
        isa,
        "--into",
        str(folder),
        "--dtypes",
        wanted,
    ]
    environment = os.environ | {"CK_BLAS": "none"}
    run = subprocess.run(command, cwd=source, env=environment, text=True, capture_output=True)
    if run.returncode:
        raise BuildError(f"the test build failed:\n{(run.stdout + run.stderr)[-2000:]}")
    for other in cache.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder
