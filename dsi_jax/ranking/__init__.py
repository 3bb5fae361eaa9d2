"""Dense retrieval: embeddings of documents, and exact search among them."""
