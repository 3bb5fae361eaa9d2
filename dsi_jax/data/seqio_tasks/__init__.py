"""seqio tasks and mixtures of a corpus."""
