"""Proof that graphs compute what transformers does.

`graphs.verify_graphs` compares every graph with transformers' own modules in float32 (`cases`,
`comparison`) on several batch sizes and ragged rows, and returns `VerifiedGraph`s. Every graph is
fed the reference's own intermediate tensors, so that an error shows where it arises. `references`
runs transformers' model of any family, `streamed` a layer at a time if it does not fit into memory
(`choosing`).

For the parity report, `recording` keeps what passes through the reference, `blocks` says at which
block an error begins, `invariance` whether a row depends on its batch, and `preprocessing` compares
pixels; `thresholds` has the limits. This room does not know how a graph was made, nor any engine
but ONNX Runtime.
"""
