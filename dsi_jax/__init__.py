"""dsi_jax: differentiable search indexes (generative retrieval) in JAX."""

__version__ = "0.1.0"
