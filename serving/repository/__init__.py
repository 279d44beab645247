"""From a build's engines to a Triton model repository.

`assembling.py` is the entry point. It reads the configs of `model_repository/` into Triton's own
protobuf message (`model_config.py`), fills in what the build decides (shapes, data types, engine,
limits), and writes them out. Policy in a config (delay, queue, instances, warm-ups, cache) stays
the operator's. `native.py` has what Triton's own backends need to know about an engine; the ONNX
files stay where they are, behind a link (decision 0018). `profiles.py` derives warm-ups and CUDA
graphs from an engine's profiles; `files.py` says which files serving opens, and which of them are
missing or have another size. Starts no server.
"""
