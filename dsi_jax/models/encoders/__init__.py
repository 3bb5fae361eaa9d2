"""Encoders of texts and images, by registry."""
