"""The language model on ONNX Runtime, in this process, with continuous batching.

`engine.OnnxEngine` is a queue and a worker thread. At each step `scheduler.Scheduler` decides whose
rows the batch has. `graphs` runs these rows in slots (`slots`) that are allocated once, with keys
and values in the host's memory or a GPU's (`key_value_caches`, decision 0007).

The scheduler knows nothing of graphs, and the graphs know nothing of requests or options.
"""
