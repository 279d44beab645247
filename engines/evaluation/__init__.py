"""Compares a build's answers with transformers'.

`texts.verify_texts` compares whole texts, greedy or by beam search; `first_token` compares the
logits of the first token; `accuracy` compares the share of right answers, with confidence
intervals.

It runs the build in this process, on ONNX Runtime. Knows nothing of Triton: the server's answers
are compared in `serving.parity`.
"""
