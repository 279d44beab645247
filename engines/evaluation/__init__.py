"""A build's answers against transformers': texts, accuracy, first tokens."""
