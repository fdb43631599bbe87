"""The content of a model folder as a short name: two folders of one basename are two models."""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from prompteol_utils.utils import files

# What decides a vector; not optimizer states, training arguments, model cards and chat templates.
_DECISIVE = (
    "config.json",
    "adapter_config.json",  # transformers puts an adapter that lies there on top
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "*/model.safetensors",  # trained layers on top (sentence-transformers' 2_Dense)
)
_REMEMBER_FROM = 8 << 20  # bytes; smaller files are hashed each time
_SETTLED = 2  # seconds since its last change after which a file's times can tell a later change


def folder_fingerprint(folder: str | Path) -> str:
    """Return "sha256-" and 16 hex digits over a folder's configuration, tokenizer and weights.

    Checksums of large files are remembered in the cache folder (where it can be written) and reused
    while size and times of a file stay the same.

    Args:
        folder: A saved model, as `save_pretrained` writes it.
    """
    folder = Path(folder).resolve()
    found = sorted({file for pattern in _DECISIVE for file in folder.glob(pattern)})
    memory = _Checksums()
    whole = hashlib.sha256()
    for file in found:
        whole.update(f"{file.relative_to(folder).as_posix()} {memory.of(file)}\n".encode())
    memory.save()
    return f"sha256-{whole.hexdigest()[:16]}"


class _Checksums:
    """SHA-256 of large files by path, size and times, kept in one JSON file of the cache folder."""

    def __init__(self):
        self._known, self._changed, self._file = {}, False, None
        with suppress(OSError, ValueError):
            self._file = files.cache_folder() / "checksums.json"
            self._known = dict(json.loads(self._file.read_text(encoding="utf-8")))

    def of(self, file: Path) -> str:
        status = file.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if status.st_size < _REMEMBER_FROM:
            return files.sha256(file)
        entry = self._known.get(str(file))
        if isinstance(entry, list) and entry[:3] == stamp:
            return entry[3]
        checksum = files.sha256(file)
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED:
            self._known[str(file)] = [*stamp, checksum]
            self._changed = True
        return checksum

    def save(self) -> None:
        if self._changed and self._file is not None:
            with suppress(OSError), files.atomic_file(self._file, "w") as out:
                json.dump(self._known, out, indent=1)
