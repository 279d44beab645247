"""Trains the demo checkpoints from nothing: handwritten digits in colour, at places, questioned.

The stages follow the originals: a vision encoder first (here with auxiliary heads), then frozen; a
language model on text alone; the Q-Former between the two; at last everything together. Models that
share a part in the originals share it here; `recipes.py` has a table of all six.

    python -m checkpoints.training build vicuna
    python -m checkpoints.training build blip2-opt
    python -m checkpoints.training heldout
    python -m checkpoints.training evaluate checkpoints/instructblip-demo-vicuna

This package knows transformers and the images it draws. It knows nothing of ONNX, of engines or
of servers, and nothing else in the repository imports it.
"""
