"""A run that failed once: Triton's response cache keeps it, and its images are answered later."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from iblip.serving.client import Client, EngineError
from iblip.serving.repository.assembling import REPOSITORY
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer

FAILS_ONCE = """

class TritonPythonModel(ComponentModel):
    def execute(self, requests):
        if not self.has_failed and any(self._is_asked(request) for request in requests):
            self.has_failed, infer = True, self.runner.infer
            self.runner.infer = self.fail
            try:
                return super().execute(requests)
            finally:
                self.runner.infer = infer
        return super().execute(requests)

    has_failed = False

    def fail(self, feed):
        raise RuntimeError("out of memory")

    def _is_asked(self, request):  # a warm-up's image is black
        return any(tensor.as_numpy().any() for tensor in request.inputs())
"""


@pytest.mark.parametrize("component", ["vision_encoder", "qformer"])
def test_images_whose_run_failed_are_answered_later(component, vicuna_build, examples, tmp_path):
    build = Path(shutil.copytree(vicuna_build, tmp_path / "build", symlinks=True))
    model = build / REPOSITORY / component / "1" / "model.py"
    source = model.read_text()
    model.unlink()  # it may be linked to where it was built from
    model.write_text(source + FAILS_ONCE)
    with (
        TritonServer(build / REPOSITORY, options=ServerOptions(cache_mib=16)) as server,
        Client(server.grpc_url) as client,
    ):
        with pytest.raises(EngineError, match="out of memory"):
            client.ask(examples[0].image, examples[0].prompt)
        texts = [client.ask(examples[0].image, examples[0].prompt).text for _ in range(2)]
    assert texts == [examples[0].answer] * 2
