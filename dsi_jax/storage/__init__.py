"""Files of a run: their layout and formats."""
