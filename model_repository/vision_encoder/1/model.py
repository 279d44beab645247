"""Triton's Python model of the vision encoder, where a runner of this project carries it."""

from iblip.serving.steps.component_model import ComponentModel

TritonPythonModel = ComponentModel
