"""The parity report of `iblip verify`: builds of one checkpoint compared with transformers.

`running.parity_report` is the entry point. `stages.py` is the table of stages, in the order of the
data flow; what several stages need is computed once (`subjects.py`). Each stage gives a list of
checks with limits (`report.py`). `text.py` shows the report on a terminal; `html.py`,
`sections.py`, `markup.py` and `svg.py` draw the page from the report's JSON, and `writing.py`
writes both files. The comparisons themselves are made elsewhere: graphs in `export.verification`,
answers in `engines.evaluation`. Knows nothing of Triton: builds run in this process.
"""
