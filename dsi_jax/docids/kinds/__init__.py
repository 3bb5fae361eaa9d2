"""Docid kinds, one module a family."""
