"""Prompts and instructions to token ids, with the `tokenizers` library alone."""
