"""The language model on ONNX Runtime: queue, scheduler, slots, key-value caches."""
