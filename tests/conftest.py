"""What every test shares."""

import os

import huggingface_hub
import pytest

from prompteol_utils.data import senteval
from prompteol_utils.utils import files

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_runtest_setup(item) -> None:
    """Gemma's weights come under terms of use: a test run does not accept them for anybody."""
    if item.get_closest_marker("gemma") and "gemma" not in item.config.getoption("-m", ""):
        folder = files.cache_folder() / "models" / "gemma3-270m"
        if not (folder / "config.json").is_file():
            pytest.skip("Gemma's weights are not in the cache: `prompteol fetch gemma3-270m`")


@pytest.fixture
def without_senteval(monkeypatch, tmp_path):
    """No folder, no hub: the sets written for this project; a cache of the test's own."""

    def fail(*arguments, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the hub's cache")

    monkeypatch.delenv(senteval.VARIABLE, raising=False)
    monkeypatch.setenv("PROMPTEOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(senteval, "failure", None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
