"""The kit: what a GPU machine without a network needs to prove builds, in a few small transfers.

`make gpu-kit` makes it (`make_kit.py`); README.md says which command each transfer runs there.
Here run `prune.py` (ONNX Runtime for one GPU architecture), `slim.py` (builds without unused bytes)
and the first half of `true_size.py`; there run its second half, `prove_builds.py` and
`prove_server.py`. `records.py` reads what came back.
"""
