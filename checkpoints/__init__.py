"""The two small demo checkpoints, their held-out examples, and the code that trains them."""
