"""Weights, and some activations, in eight or four bits.

`options.quantisations` says how each component is quantised. `calibration.measure` runs images
through the traced graphs, block by block in float32 (`running`), and `measuring` takes the error of
each matmul and its static scale. `graph.quantise` then replaces the matmuls of a graph (`matmuls`)
with block-wise quantised ones for float activations (`blockwise`), or with channel-wise ones for
activations in eight bits (`channelwise`, in a format of `formats`).

A quantised weight is a recipe like any other: it is computed a piece at a time, when the graph is
written. This room does not know which engine will run the graph.
"""
