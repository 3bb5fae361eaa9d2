"""Checks, units and files: what every layer may use."""
