"""The language model on vLLM, in a process and an environment of its own (decision 0008).

`opening.open_vllm` starts `engine.VllmEngine`, which holds the queue and restarts the process when
it dies. `process` and `worker` are the two ends of its pipe; `worker` is a script that runs under
vLLM's own Python (`environment`). `options` translates a request's options and refuses what vLLM
cannot do; `sequences` builds the answers; `building` and `settings` are what a build decides.

Only `worker` imports vLLM. This package knows nothing of ONNX.
"""
