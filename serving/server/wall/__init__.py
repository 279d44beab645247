"""A wall before Triton: what ends Triton 2.51 itself is refused before it gets there.

`launch.py` is a script that starts the wall and then becomes Triton, so that one command has both;
`command.py` puts it before Triton's own. Two parts, as there are two ways in:

- HTTP: Triton listens on a socket in its scratch folder, and `proxy.py` on the port. It takes each
  request whole, refuses what `limits.py` refuses, and passes on everything else unchanged.
- gRPC: nothing is in between. `classification.c`, compiled by `library.py`, is loaded into Triton
  and repairs the one request that is known to end it.
"""
