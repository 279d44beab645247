"""Prompts and instructions to token ids.

Built on the `tokenizers` library alone, so that a server needs no transformers. The files in a
build's `text/` decide what is done: special tokens come from each tokenizer's own post-processor,
as in transformers. Knows nothing of graphs.
"""
