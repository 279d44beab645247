"""A checkpoint's tensors, and how a graph's initializers are made from them.

A `Weight` (`weight`) is a tensor under transformers' name for it: bytes in a file, or computed from
such. `binding.bind` finds the weight of every initializer and gives it a `Recipe` (`recipe`): a
weight and the dtype that the graph reads. `fit.check_fit` compares a checkpoint with what its
graphs need, for all graphs at once, and lists by name what is missing, misshapen or unused.
`widening` keeps matrices of float32 islands in the file's 16 bits, and `casts` converts arrays.

Recipes are evaluated a piece at a time when a graph is written. This room does not know which
graphs there are.
"""
