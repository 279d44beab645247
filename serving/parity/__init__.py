"""The parity report: builds of one checkpoint beside transformers, stage by stage."""
