"""Runs the graphs of a language model on OpenVINO, whose matmuls of four bits are faster on a CPU.

`graph.OpenVinoGraph` is a `Graph` of `engines.language_model.onnx.graph`. Attention over slots
stays with ONNX Runtime (`attention`), whose operator writes keys and values in place (decision
0052).

Knows nothing of requests or text.
"""
