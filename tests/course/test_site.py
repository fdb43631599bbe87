"""What Sphinx gets to read; the files for Binder and Colab. `make site-test` sees the result."""

import os
import re

import pytest

from tools import site
from tools.notebooks import rules

BINDER = rules.ROOT / "binder"


@pytest.fixture(params=["", "owner/name"], ids=["no address", "an address"])
def prepared(request, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "WORK", tmp_path / "src")
    monkeypatch.setenv("GITHUB_REPOSITORY", request.param)
    site.prepare()
    return tmp_path / "src"


def test_figures_solutions_links_and_targets(prepared):
    for path in rules.find():
        nb = rules.read(prepared / "notebooks" / path.name)
        sources = [cell.source for cell in nb.cells]
        assert ("open in Colab" in sources[0]) == bool(os.environ["GITHUB_REPOSITORY"])
        for cell in nb.cells:
            tags = cell.metadata.get("tags", ())
            assert cell.cell_type != "code" or ("solution" in tags) == ("hide-cell" in tags)
            if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())):
                assert len(cell.metadata["mystnb"]["image"]["alt"]) > 20
        teaching = (prepared / "teaching" / "lessons.md").read_text(encoding="utf-8")
        for label in set(re.findall(rf"\(#(cell-{path.stem[:2]}-[\w-]+)\)", teaching)):
            assert sources.count(f"({label})=") == 1


def test_links_to_files_that_are_no_page_become_text(prepared):
    text = (prepared / "results.md").read_text(encoding="utf-8")
    assert "commit: `data/results/sts.jsonl`." in text
    assert "benchmarks (`benchmarks/README.md`)" in text and "](../" not in text


def test_binder_and_colab_take_the_pins_of_the_lock():
    assert (BINDER / "environment.yml").resolve() == rules.ROOT / "environment.yml"
    assert os.access(BINDER / "postBuild", os.X_OK)
    lock = set(re.findall(r"^([\w.-]+==\S+)", (rules.ROOT / "requirements.lock").read_text(), re.M))
    pins = [line for line in (BINDER / "colab.txt").read_text().splitlines() if line[0] != "#"]
    assert len(pins) > 3 and set(pins) <= lock
