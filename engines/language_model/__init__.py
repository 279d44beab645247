"""Language-model engines: a visual prompt and a prompt in, a stream of text out.

`types.LanguageModelEngine` is the interface: submit a request, receive a stream of events. It does
not say how many requests run at once. `opening.open_engine` opens the engine of a build: `onnx`
runs in this process, `vllm` in another. Both share `options` and `presets` (how to generate),
`checking` (what is refused), `answering`, `stopping` and `detokenise` (tokens to text),
`generation` (the two ends of a request) and `totals`. `decoding` continues a request's sequences.

Knows nothing of images, components or Triton.
"""
