"""Plans built by TensorRT or TensorRT-RTX from verified graphs."""
