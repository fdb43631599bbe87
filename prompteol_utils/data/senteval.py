"""Where SentEval's data lies: a folder that was named, else the archive on the Hugging Face hub, fetched once.

A named folder is never silently replaced by another source, and the hub is asked once per process, for a few seconds at most.
"""

import errno
import os
import tarfile
import threading
from pathlib import Path

from prompteol_utils.models import download
from prompteol_utils.utils import files

VARIABLE = "PROMPTEOL_SENTEVAL"
_REPO, _ARCHIVE = (
    "princeton-nlp/datasets-for-simcse",
    "senteval.tar",
)  # named in SimCSE: SentEval/data/downstream/download_dataset.sh
_WAIT = 4.0  # seconds for "is the hub there?"; its own download function keeps trying for 23
_failure: str | None = (
    None  # why the hub did not help, remembered so that a process waits for it only once
)


class Unreachable(FileNotFoundError):
    """No folder was named and the hub cannot be reached."""


def find_folder(needs: str, root: str | os.PathLike | None = None) -> tuple[Path, str]:
    """The folder that holds STS/, SICK/ and so on (SentEval's `downstream`), and where it is from.

    Args:
        needs: What is wanted of it, such as "STS/STS12-en-test".
        root: The folder itself; None stands for the one in the variable PROMPTEOL_SENTEVAL, else the hub's archive.

    Returns:
        The folder and its origin: "senteval" for a named folder, "hub" for the archive.

    Raises:
        FileNotFoundError: The named folder (or the archive) is missing or lacks what is needed.
        Unreachable: No folder was named and the hub is out of reach; says how to get the data.

    Built in notebook 01.
    """
    named = root if root is not None else os.environ.get(VARIABLE) or None
    if named is None:
        folder = _hub_folder()
        if not (folder / needs).exists():
            raise FileNotFoundError(
                f"the hub's {_ARCHIVE} ({_REPO}) has no {needs}; name a folder that has it: root= or {VARIABLE}"
            )
        return folder, "hub"
    given, folder = f"{'root' if root is not None else VARIABLE}={named}", Path(named).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{given} is not a folder. Name SentEval's `downstream` folder, the one that holds STS/ and SICK/ "
            "(the set written for this project is read by load_mini_sts)"
        )
    if not (folder / needs).exists():
        inner = next(
            (
                folder / name
                for name in ("downstream", "data/downstream")
                if (folder / name / needs).exists()
            ),
            None,
        )
        raise FileNotFoundError(
            f"{given} has no {needs}" + (f"; did you mean {inner}?" if inner else "")
        )
    return folder, "senteval"


def hub_file(name: str) -> str:
    """Path of another file of the repository that holds the archive, in the hub's own cache, fetched when it is not there.

    Raises:
        Unreachable: It is not in the cache and the hub is out of reach.
    """
    global _failure
    try:
        return _download(name)
    except ConnectionError as error:
        _failure = str(error)
        raise Unreachable(f"no {name} of the hub's {_REPO}: {_failure}") from None


def _hub_folder() -> Path:
    """The unpacked archive in the cache, fetched when it is not there or damaged."""
    global _failure
    target = files.cache_folder() / "senteval"
    if not download.manifest_ok(target):
        try:
            if _failure:
                raise ConnectionError(_failure)
            archive = _download()
        except ConnectionError as error:
            _failure = str(error)
            raise Unreachable(
                f"no SentEval data: {_failure}. Go online once (the hub's {_REPO}, {_ARCHIVE}, is then kept), or fetch SentEval's data "
                f"elsewhere (SimCSE's repository, SentEval/data/downstream/download_dataset.sh) and set {VARIABLE}, or pass root=, to the "
                "folder that holds STS/ and SICK/"
            ) from None
        with files.lock(target):
            if not download.manifest_ok(target):  # another process may have been faster
                _unpack(archive, target)
    for folder in (
        target,
        *sorted(target.glob("*")),
        *sorted(target.glob("*/*")),
    ):  # wherever the archive has it
        if (folder / "STS").is_dir():
            return folder
    raise FileNotFoundError(
        f"the hub's {_ARCHIVE} ({_REPO}) holds no STS folder; name a folder: root= or {VARIABLE}"
    )


def _unpack(archive: str, target: Path) -> None:
    try:
        with files.atomic_folder(target) as folder:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")  # refuses what would land outside
            download.write_manifest(folder)
    except (tarfile.TarError, EOFError) as error:
        raise files.CacheError(
            f"the hub's {_ARCHIVE} cannot be unpacked ({error}): delete {archive} and run this again"
        ) from error


def _download(name: str = _ARCHIVE) -> str:
    """Path of the archive (or another file) in the hub's own cache; ConnectionError when it is not there and the hub is out of reach."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    wanted = {"repo_id": _REPO, "filename": name, "repo_type": "dataset"}
    try:
        return huggingface_hub.hf_hub_download(**wanted, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        pass
    if _failure:  # asked before in this process
        raise ConnectionError(_failure)
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {
        "1",
        "ON",
        "YES",
        "TRUE",
    }:
        raise ConnectionError("HF_HUB_OFFLINE is set, so the hub was not asked")
    _ask_hub(constants.ENDPOINT)
    try:
        return huggingface_hub.hf_hub_download(**wanted)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise  # the disk's fault, not the network's
        raise ConnectionError(f"the download from {constants.ENDPOINT} failed ({error})") from error


def _ask_hub(endpoint: str) -> None:
    """One request, answered in time or not at all; in a thread, because waiting for a name server has no other limit."""
    from huggingface_hub.utils import get_session

    outcome = [f"{endpoint} did not answer within {_WAIT:g} s"]

    def ask():
        try:
            get_session().head(endpoint, timeout=_WAIT)
            outcome[0] = ""
        except (
            Exception
        ) as error:  # the HTTP library's own classes; each of them means "not in reach"
            outcome[0] = f"{endpoint} cannot be reached ({error})"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_WAIT)
    if outcome[0]:
        raise ConnectionError(outcome[0])
