"""How a request's sequences go on: sampling, beam search, ranking (decision 0009).

`decoding.decoding_for` returns the `Decoding` that a request's options ask for: it takes the logits
of the request's rows and returns the rows of its next step. `sampling`, `beams`,
`transformers4_beams` and `ranking` are the algorithms; all but ranking apply `logits_processors`.

Knows nothing of the model, of caches, of time, or of other requests.
"""
