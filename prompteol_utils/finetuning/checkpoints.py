"""The folder of one training run: its identity, and its last good checkpoint."""

import json
import logging
import os
from pathlib import Path

import torch

from prompteol_utils.utils import files

_RUN, _CHECKPOINT, _BATCH = "run.json", "checkpoint.pt", "bad_batch.json"
_MAY_CHANGE = {"save_every", "max_steps", "epochs"}  # how far and how safely, not what is computed
log = logging.getLogger(__name__)


def init_run_dir(out: str | os.PathLike, run: dict) -> Path:
    """Take a folder for a run, or find it taken by the same run.

    A run that was killed before its first checkpoint has left nothing that another could destroy:
    its folder is free, and that is said.

    Args:
        out: The folder; made if missing.
        run: All that decides the run's numbers, as plain values: settings, model, data.

    Returns:
        The folder.

    Raises:
        ValueError: It holds another run (the differences are named), or files that are no run.
            Nothing is overwritten.
    """
    out, run = Path(out), json.loads(json.dumps(run))  # as a file gives them back
    kept = _kept(out)
    if (out / _RUN).is_file():
        before = json.loads((out / _RUN).read_text(encoding="utf-8"))
        names = [name for name in before | run if before.get(name) != run.get(name)]
        if not kept:
            log.warning("the run that had %s ended before its first checkpoint: it is free", out)
        elif not _MAY_CHANGE.issuperset(names):
            changed = "; ".join(
                f"{name} was {before.get(name)!r:.80}, now {run.get(name)!r:.80}" for name in names
            )
            raise ValueError(
                f"{str(out)!r} holds another run ({changed}). Choose another folder, or delete "
                "this one"
            )
        if not names:
            return out
    elif kept:
        raise ValueError(
            f"{str(out)!r} holds files that are no training run; choose another folder"
        )
    with files.atomic_file(out / _RUN, "w") as file:
        json.dump(run, file, indent=1, ensure_ascii=False)
    return out


def leave(out: Path) -> None:
    """Give the folder free again where no checkpoint was reached: nothing of the run is there."""
    if not _kept(out):
        (out / _RUN).unlink(missing_ok=True)


def _kept(out: Path) -> list[str]:
    """What a folder holds besides a run's identity; locks and half-written files are hidden."""
    found = [file.name for file in out.iterdir()] if out.is_dir() else []
    return [name for name in found if name != _RUN and not name.startswith(".")]


def save(out: Path, state: dict) -> None:
    """Replace the checkpoint, atomically.

    Args:
        out: The run's folder.
        state: Tensors and plain values; "step" is among them.

    Raises:
        files.CacheError: The disk is full or the folder read-only. The checkpoint before is whole.
    """
    try:
        with files.atomic_file(out / _CHECKPOINT) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch wraps what the disk says
        kept = load(out)
        before = f"the one of step {kept['step']} is whole" if kept else "there was none before"
        raise files.CacheError(
            f"the checkpoint of step {state['step']} could not be written to {out} "
            f"({str(error).splitlines()[0]}); {before}. Free some space and start the same run "
            "again: it is resumed from there"
        ) from error


def load(out: Path) -> dict | None:
    """Read the last checkpoint, to the CPU; None before the first."""
    if not (out / _CHECKPOINT).is_file():
        return None
    return torch.load(out / _CHECKPOINT, map_location="cpu", weights_only=True)


def save_batch(out: Path, batch: dict) -> Path:
    """Keep the batch at which training stopped, to look at."""
    with files.atomic_file(out / _BATCH, "w") as file:
        json.dump(batch, file, indent=1, ensure_ascii=False)
    return out / _BATCH
