"""Many images asked about: rows in, one line of JSON out for each question, and none twice.

`rows.py` reads what is to be asked (a folder, JSONL, CSV, a WebDataset's tar, Parquet);
`output.py` is the file of answers, which survives whatever ends the process; `targets.py` asks a
build in this process, or servers; `running.py` brings them together.
"""
