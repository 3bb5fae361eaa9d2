"""k-means and other quantizers."""
