"""A search engine for haiku that one half remembers."""
