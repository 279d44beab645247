"""What this machine, a container and a build have for one another: `iblip doctor`.

Facts are gathered first (`machine.py`, `probes.py`, `nvidia.py`), then judged by tables of small
functions (`checks.py`, `builds.py`), then told (`report.py`). Needs nothing but the client's own
dependencies: what is missing for which job is what it tells.
"""
