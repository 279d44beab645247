"""Options of a build as a notebook gives them: paths as strings."""

from __future__ import annotations

from pathlib import Path

import pytest

from iblip.engines.pipeline import Pipeline
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import BuildDirectoryError, OptionError
from iblip.serving.builder.options import (
    BuildOptions,
    CacheOptions,
    LimitOptions,
    SizeOptions,
    VerificationOptions,
)
from iblip.serving.parity.running import ParityOptions
from iblip.serving.server.options import ServerOptions
from iblip.serving.server.server import TritonServer
from iblip.serving.steps.policy import Policy


def test_paths_may_be_strings(tmp_path):
    source = ModelSource(model="lavis:x", parts={"vit": "v.pth"})
    options = BuildOptions(
        source=source,
        output="build/py",
        caches=CacheOptions(engines="e", traces=None),
        verification=VerificationOptions(examples=str(tmp_path)),
    )
    assert options.destination == Path("build/py")
    assert options.source.parts == {"vit": Path("v.pth")}
    assert options.caches == CacheOptions(engines=Path("e"), traces=None)
    assert options.verification == VerificationOptions(examples=tmp_path)
    assert ParityOptions(examples="e") == ParityOptions(examples=Path("e"))
    assert ServerOptions(log="l", triton="t") == ServerOptions(log=Path("l"), triton=Path("t"))
    assert TritonServer(str(tmp_path)).repository == tmp_path


def test_a_path_is_a_directory_and_never_a_name_of_the_hub():
    assert ModelSource(model="acme/tiny").is_on_hub
    source = ModelSource(model=Path("acme/tiny"))
    assert not source.is_on_hub
    assert source.model == str(Path("acme/tiny").absolute())
    assert source.name == "tiny"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BuildOptions(output=3), "output is 3; expected a path"),
        (lambda: ModelSource(model=None), "model is None; expected a path"),
        (lambda: ModelSource(model="x", parts={"vit": 3}), "the part vit is 3; expected a path"),
        (lambda: ServerOptions(log=b"l"), "log is b'l'; expected a path"),
        (lambda: Pipeline(None), "directory is None; expected a path"),
    ],
)
def test_what_is_no_path_is_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_a_pipeline_takes_a_string(tmp_path):
    with pytest.raises(BuildDirectoryError, match=f"{tmp_path} is not a build"):
        Pipeline(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SizeOptions(max_batch=2**31), "--max-batch is 2147483648; expected at most 2147"),
        (lambda: LimitOptions(queue=2**64), "--queue is 18446744073709551616; expected at most 2"),
        (lambda: Policy(caller_header="a b"), "caller_header is 'a b', which no header is called"),
        (lambda: ServerOptions(grpc_port=8000, http_port=8000), "expected three different ones"),
    ],
)
def test_what_nothing_can_have_is_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()
