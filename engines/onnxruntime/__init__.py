"""Graphs on ONNX Runtime."""
