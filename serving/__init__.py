"""From engines to a running service: the Triton repository, the server, the client, the commands.

`builder/` makes a build from a checkpoint, `repository/` its Triton repository, `server/` runs
Triton on it, and `steps/` is what Triton's Python models do. `client/` asks a server; `wire/` is
the contract between the two. `parity/` compares builds with transformers, `doctor/` checks a
machine, `lint/` checks a repository, and `cli/` has a command for each of these. Importing this
package loads nothing heavy; `serving.client` needs neither torch, transformers nor onnxruntime.
"""
