"""Verified ONNX to something that runs.

ONNX Runtime, TensorRT and TensorRT-RTX for the components; the language-model engines. Importing
this package loads none of those libraries.
"""
