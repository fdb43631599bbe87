"""Grade hand-ins with the checks of the lessons: `python -m tools.grade --help`."""
