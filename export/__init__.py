"""Checkpoint to verified ONNX.

This package knows torch, transformers and onnx-ir. It knows nothing of TensorRT or Triton.
Importing it, or any of `errors`, `contract` and `manifest`, loads none of the heavy libraries: the
server and the client read builds through these three.
"""
