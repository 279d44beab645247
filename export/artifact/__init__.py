"""What a build is on disk: what the server, the client and the engines read of it.

`contract` describes the tensors of a graph: names, dtypes and axes, which everything else derives
from. `manifest` is `manifest.json`: source, digests, contracts, precision, engines, proof, tools.
`verified_graph` has a graph as a value, and with the proof that it passed verification. `directory`
builds beside the destination and swaps the two in one system call.

This room loads nothing heavy and does not know how a graph is made.
"""
