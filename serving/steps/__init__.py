"""What the Python models of the repository do: their `model.py` only translate.

Only `component_model` knows Triton's own module.
"""
