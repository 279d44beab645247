"""Checkpoint to verified ONNX.

`opening` opens what `--model` names as a `Checkpoint` (`checkpoint`, `families`, `originals`),
whose tensors are `Weight`s in files (`weights`). `exporter.graphs_from_checkpoint` traces its
components (`components`, `graph`), quantises them (`quantisation`) and writes the graphs; no step
holds a model's weights in memory. `verification` compares every graph with transformers and turns
it into a `VerifiedGraph`, the only thing that engines are built from. `estimate` predicts a build's
size, `models` lists the released models, and `synthesis` writes checkpoints of random weights.

This room knows torch, transformers, onnx-ir and, to verify, ONNX Runtime. It does not know TensorRT
or Triton. Importing it, or any of `artifact`, `errors`, `examples`, `images`, `messages`,
`progress` and `system`, loads nothing heavy: the server and the client read builds through them.
"""
