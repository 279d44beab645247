"""The language model on vLLM: in a process of its own, under a Python of its own."""
