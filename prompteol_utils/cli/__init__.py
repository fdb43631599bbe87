"""The command line: `prompteol`, or `python -m prompteol_utils`."""
