"""Checkpoints of a model's true geometry with random weights.

For what depends on size alone: whether a build fits, how long it takes, what serving needs. Names,
shapes and dtypes are the released model's; the weights are not, so answers mean nothing, and
`config.json` says so (`MARK`). Knows nothing of graphs.
"""
