"""Compiling for machines that are not here."""
