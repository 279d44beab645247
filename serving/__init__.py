"""Engines to a running service: the Triton repository, the server, the client, the command line.

Importing this package loads nothing heavy; `serving.client` needs neither torch, transformers nor
onnxruntime.
"""
