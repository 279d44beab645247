"""A build as a running Triton server: `iblip serve`.

`server.TritonServer` is the entry point: it starts the server, waits until it is ready, and stops
it. `installation.py` finds `tritonserver`, `command.py` has the command that starts it, and
`keeper.py` makes the server end with its parent. `log.py` finds in the log why a model did not
load, and `memory.py` estimates what serving a build takes. Knows nothing of what the models
compute.
"""
