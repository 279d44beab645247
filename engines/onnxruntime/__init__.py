"""Runs ONNX graphs on ONNX Runtime, on a CPU or a GPU.

`runner.OnnxRuntimeRunner` is a graph as a `Runner`; `session.open_session` opens a graph and checks
it against its contract. `providers` is the table of execution providers and their options, and
`probing` says what this machine lacks for one (decision 0017). `assignment` finds what a session
left to the CPU. `binding` and `values` keep tensors in place between runs.

Knows nothing of components, requests or text.
"""
