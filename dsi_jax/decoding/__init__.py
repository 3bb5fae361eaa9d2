"""Docid tries and constrained beam search."""
