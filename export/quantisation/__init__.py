"""Weights as whole numbers: which products of a graph take them, how they are made, and checked.

Quantising is a recipe like a cast: one tensor at a time, when the graph is written.
"""
