"""The commands around notebooks: python -m tools.notebooks."""

from tools.notebooks import rules
from tools.notebooks.__main__ import main

EMPTY = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


def test_errors_are_one_line_and_checks_count(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rules, "NOTEBOOKS", tmp_path)
    assert main(["run", "77"]) == 2
    assert "77" in capsys.readouterr().err
    (tmp_path / "00_a.ipynb").write_text(EMPTY)
    assert main(["run", "00", "--profile", "fast"]) == 2
    assert "no profile is called 'fast'" in capsys.readouterr().err
    assert main(["check"]) == 1
    assert "1 notebooks" in capsys.readouterr().out
    assert main(["strip"]) == 0
    assert main(["clean", "00"]) == 0
