"""Corpora, seqio tasks, feature converters and the input pipeline."""
