"""What keeps the notebooks runnable and clean: `python -m tools.notebooks --help`."""
