"""Find SentEval's data: in a named folder, else in the archive on the Hugging Face hub.

A named folder is never silently replaced by another source, and the hub is asked once per process,
for a few seconds at most.
"""

import errno
import os
import shutil
import tarfile
import threading
from pathlib import Path

from prompteol_utils.utils import files

VARIABLE = "PROMPTEOL_SENTEVAL"
# Named in SimCSE: SentEval/data/downstream/download_dataset.sh
_REPO = "princeton-nlp/datasets-for-simcse"
_ARCHIVE = "senteval.tar"
WAIT = 4.0  # seconds for "is the hub there?"; its own download function keeps trying for 23
# Why the hub did not help: a process waits for it only once. None: it is asked again.
failure: str | None = None


class Unreachable(FileNotFoundError):
    """No folder was named and the hub cannot be reached."""


def named_folder(root: str | os.PathLike | None = None) -> Path | None:
    """Return the folder that `root` or PROMPTEOL_SENTEVAL names; None if neither does.

    Raises:
        FileNotFoundError: It is not a folder.
    """
    named = root if root is not None else os.environ.get(VARIABLE) or None
    if named is None:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{_given(root)} is not a folder. Name SentEval's `downstream` folder, the one that "
            "holds STS/ and SICK/ (the set written for this project is read by load_mini_sts)"
        )
    return folder


def find_folder(needs: str, root: str | os.PathLike | None = None) -> tuple[Path, str]:
    """Find the folder that holds STS/, SICK/ and so on (SentEval's `downstream`).

    Args:
        needs: What is wanted of it, such as "STS/STS12-en-test".
        root: The folder itself; None: the one in PROMPTEOL_SENTEVAL, else the hub's archive.

    Returns:
        The folder and its origin: "senteval" for a named folder, "hub" for the archive.

    Raises:
        FileNotFoundError: The named folder (or the archive) is missing or lacks what is needed.
        Unreachable: No folder was named and the hub is out of reach; says how to get the data.
    """
    folder = named_folder(root)
    if folder is None:
        folder = hub_folder()
        if not (folder / needs).exists():
            raise FileNotFoundError(
                f"the hub's {_ARCHIVE} ({_REPO}) has no {needs}; name a folder that has it: root= "
                f"or {VARIABLE}"
            )
        return folder, "hub"
    if (folder / needs).exists():
        return folder, "senteval"
    inner = [folder / name for name in ("downstream", "data/downstream")]
    hint = "".join(f"; did you mean {one}?" for one in inner if (one / needs).exists())
    raise FileNotFoundError(f"{_given(root)} has no {needs}{hint}")


def hub_file(name: str) -> str:
    """Return the path of a file of the archive's repository, fetched if the cache lacks it.

    Raises:
        Unreachable: It is not in the cache and the hub is out of reach.
    """
    global failure
    try:
        return _download(name)
    except ConnectionError as error:
        failure = str(error)
        raise Unreachable(f"no {name} of the hub's {_REPO}: {failure}") from None


def hub_folder() -> Path:
    """Return the unpacked archive in the cache, fetched if it is missing.

    Raises:
        Unreachable: It is not in the cache and the hub is out of reach.
    """
    global failure
    target = files.cache_folder() / "senteval"
    if not target.is_dir():
        try:
            if failure:
                raise ConnectionError(failure)
            archive = _download()
        except ConnectionError as error:
            failure = str(error)
            raise Unreachable(
                f"no SentEval data: {failure}. Go online once (the hub's {_REPO}, {_ARCHIVE}, is "
                "then kept), or fetch SentEval's data elsewhere (SimCSE's repository, "
                f"SentEval/data/downstream/download_dataset.sh) and set {VARIABLE}, or pass root=, "
                "to the folder that holds STS/ and SICK/"
            ) from None
        with files.lock(target):
            if not target.is_dir():  # another process may have been faster
                _unpack(archive, target)
    candidates = (target, *sorted(target.glob("*")), *sorted(target.glob("*/*")))
    for folder in candidates:  # wherever the archive has it
        if (folder / "STS").is_dir():
            return folder
    raise FileNotFoundError(
        f"the hub's {_ARCHIVE} ({_REPO}) holds no STS folder; name a folder: root= or {VARIABLE}"
    )


def _given(root: str | os.PathLike | None) -> str:
    return f"root={root}" if root is not None else f"{VARIABLE}={os.environ[VARIABLE]}"


def _unpack(archive: str, target: Path) -> None:
    try:
        with files.atomic_folder(target) as folder, tarfile.open(archive) as tar:
            for member in tar:
                _extract(tar, member, folder)
    except (tarfile.TarError, EOFError) as error:
        raise files.CacheError(
            f"the hub's {_ARCHIVE} cannot be unpacked ({error}): delete {archive} and try again"
        ) from error


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Unpack a plain file below the folder; `extractall(filter=)` came only with Python 3.11.4."""
    target = folder / member.name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise tarfile.TarError(f"{member.name!r} would land outside the folder")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
    elif member.isfile():  # links and devices are not data
        target.parent.mkdir(parents=True, exist_ok=True)
        with tar.extractfile(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)


def _download(name: str = _ARCHIVE) -> str:
    """Return a file's path in the hub's own cache, fetched if it is not there.

    Raises:
        ConnectionError: It is not in the cache and the hub is out of reach.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    wanted = {"repo_id": _REPO, "filename": name, "repo_type": "dataset"}
    try:
        return huggingface_hub.hf_hub_download(**wanted, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        pass
    if failure:  # asked before in this process
        raise ConnectionError(failure)
    variable = os.environ.get("HF_HUB_OFFLINE", "").upper()
    if constants.HF_HUB_OFFLINE or variable in ("1", "ON", "YES", "TRUE"):
        raise ConnectionError("HF_HUB_OFFLINE is set, so the hub was not asked")
    _ask_hub(constants.ENDPOINT)
    try:
        return huggingface_hub.hf_hub_download(**wanted)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise  # the disk's fault, not the network's
        raise ConnectionError(f"the download from {constants.ENDPOINT} failed ({error})") from error


def _ask_hub(endpoint: str) -> None:
    """Ask once, with a time limit; in a thread, for waiting for a name server has no other limit.

    Raises:
        ConnectionError: No answer in time.
    """
    from huggingface_hub.utils import get_session

    outcome = [f"{endpoint} did not answer within {WAIT:g} s"]

    def ask():
        try:
            get_session().head(endpoint, timeout=WAIT)
            outcome[0] = ""
        except Exception as error:  # the HTTP library's own classes; each means "not in reach"
            outcome[0] = f"{endpoint} cannot be reached ({error})"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT)
    if outcome[0]:
        raise ConnectionError(outcome[0])
