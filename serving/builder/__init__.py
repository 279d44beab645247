"""`iblip build`: from a checkpoint to a build directory that can be served.

`build.build` is the entry point: it exports, verifies, builds engines, writes the manifest,
compares the greedy texts, assembles the Triton repository, and swaps the build into place.
`options.py` has what the user asks for, and refuses contradictions; `settling.py` and `sizes.py`
settle the rest, such as the sizes that engines are built for, which are those that are served.
`inputs.py` says whether a destination already is what is asked for; `dry_run.py` says what a build
would write and need. Starts no server.
"""
