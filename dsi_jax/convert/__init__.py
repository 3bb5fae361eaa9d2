"""Weights from and to other libraries' checkpoint formats."""
