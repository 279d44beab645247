"""Triton's Python model of the Q-Former, where a runner of this project carries it."""

from iblip.serving.steps.component_model import ComponentModel

TritonPythonModel = ComponentModel
