"""How a request's rows go on: sampling, beam search, ranking, logits processors."""
