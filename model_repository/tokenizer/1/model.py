"""Triton's Python model of the text step: checks a request, and makes what the Q-Former reads."""

import json

import triton_python_backend_utils as pb_utils

from iblip.engines.text.instructions import InstructionTokenizer
from iblip.serving.steps.arguments import StepArguments
from iblip.serving.steps.heartbeat import start_heartbeat
from iblip.serving.steps.prompts import text_tensors
from iblip.serving.wire import PIXELS, PROMPT, text_from_error


class TritonPythonModel:
    """Reads one prompt a request, and looks at its images."""

    def initialize(self, args):
        """Loads the tokenizer."""
        start_heartbeat()
        step = StepArguments.from_triton(args)
        self.tokenizer = InstructionTokenizer.from_build(step.directory, step.manifest)
        self.most_images = step.manifest.limits.images

    def execute(self, requests):
        """One response a request, in their order."""
        return [self.response(request) for request in requests]

    def response(self, request):
        """What one request gives, or why nothing."""
        prompt, pixels = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in (PROMPT, PIXELS)
        )
        try:
            parameters = json.loads(request.parameters() or "{}")
            tensors = text_tensors(prompt, pixels, self.tokenizer, self.most_images, parameters)
        except Exception as fault:  # it belongs to this request, not to the model's process
            code = pb_utils.TritonError.INVALID_ARG
            error = pb_utils.TritonError(text_from_error(fault), code)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(name, array) for name, array in tensors.items()]
        )
