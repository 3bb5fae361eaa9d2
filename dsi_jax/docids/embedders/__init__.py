"""Embedders: documents to vectors."""
