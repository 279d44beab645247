"""A component as an ONNX graph: traced, completed, named, written, hashed.

`tracing.trace` builds the module with fake parameters, sets dtypes (the float32 islands of
`export.precision`) and runs `torch.onnx.export`; weights are initializers without values. A deep
stack is traced with three blocks, and the last one is copied (`stamping`). `folding` folds
constants, `value_names` names every value after the module that computes it, and `trace_cache`
keeps traces for other builds. `writing.write_graphs` writes the graphs, with their weights beside
them or linked to the checkpoint's files, and `digest` hashes both.

This room does not know what a component computes or how its weights are quantised.
"""
