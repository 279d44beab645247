"""The released models, and the geometry of each."""
