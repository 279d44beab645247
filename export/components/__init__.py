"""The modules that are traced: one `Component` for each graph, with its contract.

`graphs_of_checkpoint.components_from_checkpoint` lists them; a language model is one row of
`LANGUAGE_MODELS` there. The parameters of a module carry the checkpoint's own names. Every
attention is `attention.py`: softmax in float32, masks as additive tensors derived from the
contract's integer masks. `decoder` uses standard operators alone, so that any engine takes it;
`batched_decoder` is the same over slots that many requests share (`slots`), for ONNX Runtime.
`block_marks` marks where the blocks of a stack end (a block is a layer of a transformer),
`autocast` reproduces the originals' mixed precision, and `without_memory` makes modules whose
weights take no memory.

This room does not trace anything and reads no weights.
"""
