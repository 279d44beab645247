"""`iblip prove`: a build compared with its own references, on the machine that is to run it.

`running.prove` is the entry point: it runs each stage of the table in `stages.py` in a process of
its own (`worker.py`), so that a device that fails ends one stage, and appends each fact to the
record as soon as it is known (`record.py`). The stages lie in `machine`, `placement`, `graphs`,
`answers`, `kernels`, `memory` and `speed`; `subject.py` is what they look at. `text.py` shows facts
on a terminal, `page.py` a record as a page. `iblip verify` compares with transformers on a CPU;
this room loads neither torch nor transformers, but for the stage `speed` where torch is installed.
Knows nothing of Triton.
"""
