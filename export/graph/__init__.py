"""A component as an ONNX graph: traced, folded, named, written."""
