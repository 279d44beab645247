"""What the Triton repository's Python models do; their `model.py` only translate for Triton.

`arguments.StepArguments` reads what Triton gives a model at its start. `prompts.py` is the text
step, the first of the ensemble: it checks a request, tokenises what the Q-Former reads, counts and
passes on the images, and notes when the request arrived, in a tensor of its own so that the
response cache does not see the time. `batches.py` joins the requests of the vision encoder and the
Q-Former; `answering.Answering` follows many answers of the language model at once; `metrics.py`
turns the engine's status into Prometheus' metrics. Only `component_model.py`,
the vision encoder's and the Q-Former's model, knows Triton's Python interface.
"""
