"""The student's edition: `python -m tools.student` (or `make student`)."""
