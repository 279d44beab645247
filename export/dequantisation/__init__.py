"""Weights that another library has quantised, dequantised tensor by tensor when they are read.

Start at `methods`: a row for each method, by the word that `config.json` has for it. Each gives
weights under transformers' names, of the values and the dtype that the library itself computes, so
that nothing behind them knows of it. None of the libraries is needed. Knows no model.
"""
