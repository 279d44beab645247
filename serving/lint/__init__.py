"""A static checker for any Triton model repository: `iblip lint`.

`checking.lint` is the entry point: it reads a repository and applies every rule in `rules.RULES` to
each of its models. `reading.py` has the configs as protobuf messages, and `text_format.py` the line
of each of their fields, which protobuf's own parser forgets. `page.py` makes docs/lint.md of the
rules. Knows Triton's model configs and, for this project's builds, the manifest; starts no server,
needs no GPU, and changes nothing.
"""
