"""A build as a running Triton server: `iblip serve`.

`supervisor.Supervisor` keeps a server running: it starts `server.TritonServer`, watches it from
outside (`vitals.py`, `canary.py` with its `question.py`) and starts it again; `health.py` answers
probes. `server.py` starts one server, waits until it is ready, and stops it; `keeper.py` leaves
nothing of it behind. `access.py` says who may ask it for what (`tls.py`, `closed.py`), and `wall/`
refuses what would end Triton before it gets there.
`installation.py` finds `tritonserver`, `command.py` has the command that starts it, `log.py` finds
in the log why a model did not load, and `memory.py` estimates what serving a build takes. Knows
nothing of what the models compute.
"""
