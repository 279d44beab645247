"""The language model on ONNX Runtime, in this process, with continuous batching.

`engine.OnnxEngine` is a queue and a worker thread. At each step `scheduler.Scheduler` decides whose
rows the batch has. `decoder_only` and `encoder_decoder` run these rows in slots (`slots`) that are
allocated once, with keys and values in the host's memory or a GPU's (`key_value_caches`, decision
0007). `opening.open_model` opens a build's graphs (`graph`) as one of them.

The scheduler knows nothing of graphs, and the models know nothing of requests or options.
"""
