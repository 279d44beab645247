"""Builds and runs plans of TensorRT 10 and 11, and of TensorRT-RTX (decision 0015).

`builder.plan_from_onnx` builds a plan from a verified graph, through `job` in the library's own
calls. `libraries` finds the library, `options` is the table of its flags; `profile` and
`profile_sizes` make optimisation profiles of contracts and request sizes. `readback` and
`inspection` check that a plan keeps the graph's precision. `runner.TensorRTRunner` runs a plan:
`loading` checks it, `execution` runs it in `buffers` and `contexts`, `ranges` chooses the profile,
and `captures` keeps CUDA graphs.

Knows nothing of what a graph computes. Importing it loads none of the libraries.
"""
