"""Checkpoints as LAVIS and MiniGPT-4 keep them: several files with names of their own."""
