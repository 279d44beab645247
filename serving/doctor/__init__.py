"""Whether this machine, or a container on it, can build and serve: `iblip doctor`.

`report.examine` is the entry point. Facts are gathered first (`machine.py`, `probes.py`,
`engines.hardware.nvidia`), then judged: those of the machine by the table in `checks.py`, whose
functions lie in one module for each topic, those of a build by `builds.py`; then `report.py` puts
the findings into words. Needs only the client's dependencies, because what is missing, and for
which job, is what it reports. Starts no server and loads no build.
"""
