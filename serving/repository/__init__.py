"""A build's engines to a Triton model repository."""
