"""A trained model asked: embeddings, gene representations, and which cells it sees together."""
