"""Corpora: documents, queries and splits, and their registry."""
