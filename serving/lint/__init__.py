"""A static checker of Triton model repositories, of any origin, without a server.

`checking.lint` reads a repository and asks every rule of `rules.RULES` about each of its models.
Knows Triton's model configs and where their fields stand in a file; starts nothing.
"""
