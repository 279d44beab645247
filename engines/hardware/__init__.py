"""What this machine and NVIDIA's containers have, and which engines load there.

`nvidia` queries the driver, its GPUs and the CUDA runtime. `containers` is the table of what
NVIDIA's Triton containers contain, each figure with its source. `compatibility.fit` compares an
engine's record with a place, this machine or a container, and returns a `findings.Finding`.

Loads no engine, and needs none of their libraries.
"""
