"""The Triton models as an operator reads them: one folder a model.

`export build` assembles the served copy from them.
"""
