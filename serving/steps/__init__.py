"""What the Triton repository's Python models do; their `model.py` only translate for Triton.

`arguments.StepArguments` reads what Triton gives a model at its start. `instructblip` reads
requests (`questions.py`) under what the operator has decided (`policy.py`), and
`answering.Answering` follows many at once, from admission to the last word; `metrics.py` turns the
engine's status into Prometheus' metrics. `feeds.py` checks the requests of the vision encoder and
the Q-Former, and `batches.py` joins them. Only `component_model.py`, the model of these two, knows
Triton's Python interface.
"""
