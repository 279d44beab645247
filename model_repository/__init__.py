"""The Triton models as an operator reads them: one folder a model.

`iblip build` assembles the served copy from them.
"""
