"""What the Python models of the repository do, without Triton: their `model.py` only translate."""
