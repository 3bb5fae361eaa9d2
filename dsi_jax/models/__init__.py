"""The encoder-decoder models of a differentiable search index."""
