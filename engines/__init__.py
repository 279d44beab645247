"""Engines: verified ONNX becomes something that runs.

`selection` chooses the engine kind of a build from the table in `kinds`; `precision_support` says
which kind runs which precision. `plans` and `cache` build TensorRT plans. `runners.open_runner`
opens a component, `language_model.opening.open_engine` the language model, and `pipeline.Pipeline`
the whole model in this process, with `text` in front of it. `hardware` says what loads where.

Knows ONNX Runtime, TensorRT, TensorRT-RTX, vLLM and `tokenizers`, and imports each only where it is
used: importing this package loads none of them. It knows nothing of Triton or of the wire.
"""
