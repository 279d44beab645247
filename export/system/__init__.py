"""The operating system: files, locks, cache directories, interrupts, and library versions.

`files` writes whole files atomically, links and hashes them; `locks` locks files between processes;
`interrupts` delivers Ctrl-C between, not within, calls of an executor, and again where Python would
drop it; `cache_directory` finds the user's caches; `toolchain` says which libraries and which code
a result depends on; `paths` takes paths as strings, too.

This room knows nothing of models and loads nothing heavy.
"""
