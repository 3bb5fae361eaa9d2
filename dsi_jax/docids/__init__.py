"""Docid tables: documents (rows) to token sequences and back."""
