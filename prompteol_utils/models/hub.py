"""The Hugging Face hub: a repository's commit, with one short try when the hub is out of reach."""

from pathlib import Path

from prompteol_utils.models.registry import MODELS


def hub_commit(hub_id: str, revision: str | None = None, file: str = "config.json") -> str:
    """Resolve a hub id to a commit; offline, the newest one in the local hub cache with `file`.

    Raises:
        ValueError: There is no such repository.
        OSError: The repository is gated, or neither the hub nor its local cache has it.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return HfApi().model_info(hub_id, revision=revision, timeout=5).sha
    except GatedRepoError as error:
        raise OSError(
            f"{hub_id} is gated: accept its terms at https://huggingface.co/{hub_id} "
            "and run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"there is no {hub_id!r} on the hub (or it is private)") from error
    except Exception as error:
        try:  # offline: the path of a cached file holds its commit
            cached = hf_hub_download(hub_id, file, revision=revision, local_files_only=True)
            return Path(cached).parent.name
        except LocalEntryNotFoundError:
            offline = ", ".join(name for name, spec in MODELS.items() if spec.wheels)
            raise OSError(
                f"{hub_id} is not in the local hub cache and the hub cannot be reached "
                f"({type(error).__name__}). Go online once, or copy a hub cache here and point "
                "HF_HOME at it, or pass a folder with the saved model. "
                f"Models that need no hub: {offline}"
            ) from error
