"""TFDS builders of data sets that TFDS does not have."""
