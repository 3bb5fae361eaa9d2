"""Losses of training steps."""
