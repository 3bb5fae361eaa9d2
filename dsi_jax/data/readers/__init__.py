"""Readers: one format or data set each."""
