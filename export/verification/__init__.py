"""Proof: every graph against transformers' own modules, on several batch sizes and paddings."""
