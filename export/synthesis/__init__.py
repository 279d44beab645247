"""Checkpoints of a released model's true geometry with random weights.

They serve questions that depend on size alone: whether a build fits, how long it takes, what
serving needs. `checkpoint.synthesize` writes one: names and shapes come from transformers' modules
without memory (`geometry`), values from a seed and the tensor's name, a piece at a time (`values`,
`shards`), and tokenizers are filled up to the size of the vocabulary (`tokenizers`). The weights
mean nothing, so answers mean nothing, and `config.json` says so (`MARK`).

This room knows nothing of graphs.
"""
