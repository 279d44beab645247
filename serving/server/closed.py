"""What nobody may call on a server. Imports nothing."""

CLOSED = ("shared-memory", "logging", "trace")
"""Groups of calls that are closed unless the operator opens them. They are for operators and for
callers on the same machine, whom Triton cannot tell from others."""
