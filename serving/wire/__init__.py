"""What travels between a client and the Triton models, written once for both ends.

`names` are those of models, tensors and parameters, and import nothing; `contract` is what a client
must know of a server; `parameters` are a request's options; `answers` are an answer's last
response, as JSON; `errors` are errors as text that keeps their kind. `docs/wire.md` is this folder
for readers. Knows the manifest and the language model's options and answers; nothing of gRPC, of
Triton's messages or of numpy.
"""
