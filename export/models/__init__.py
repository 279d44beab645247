"""The released models: what they are called, what they are made of, and how large they are.

`table.MODELS` has a row for each, a `Model`. `geometry` has the configs of their parts, and
`parameters` counts parameters from a config alone.

This room reads no files.
"""
