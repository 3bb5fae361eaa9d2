"""From seqio examples to batches of arrays."""
