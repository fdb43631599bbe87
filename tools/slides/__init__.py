"""Slide decks from the lessons' stored outputs: `python -m tools.slides` (or `make slides`)."""
