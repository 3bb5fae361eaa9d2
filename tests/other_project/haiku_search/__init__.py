"""A search engine for half-remembered haiku."""
