"""`iblip.build` and `Build`, as a notebook uses them."""

from __future__ import annotations

import inspect
import os
import subprocess
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import transformers

import iblip
from iblip import Build, BuildDirectoryError, IblipError, OptionError
from iblip.building import RENAMED, BuildKeywords
from iblip.engines.tensorrt.options import PlanOptions
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import ServingError
from iblip.export.quantisation.options import QuantisationOptions
from iblip.serving.builder import options

TOPICS = (
    ModelSource,
    QuantisationOptions,
    options.EngineOptions,
    options.VllmOptions,
    PlanOptions,
    options.SizeOptions,
    options.LimitOptions,
    options.CacheOptions,
    options.VerificationOptions,
)


@pytest.fixture(scope="module")
def small(random_checkpoint):
    """A small random checkpoint's directory."""
    return random_checkpoint("llama")


@pytest.fixture(scope="module")
def build(small, tmp_path_factory):
    """A build of it that is not verified, and the steps that its making told of."""
    steps = []
    output = tmp_path_factory.mktemp("builds") / "small <1>"
    made = iblip.build(
        small, output=str(output), slots=2, max_batch=4, verify=False, progress=steps.append
    )
    return made, steps


def test_every_option_of_a_build_is_a_keyword():
    renamed = {new: old for old, new in RENAMED.items()}
    known = {renamed.get(one.name, one.name) for kind in TOPICS for one in fields(kind)}
    own = {one.name for one in fields(options.BuildOptions)}
    topics = {"source", "quantisation", "engines", "vllm", "plans", "sizes", "limits", "caches"}
    parameters = inspect.signature(iblip.build).parameters
    named = parameters.keys() - {"options", "progress", "verify"}
    rest = BuildKeywords.__annotations__.keys()
    assert not named & rest
    assert named | rest == known | (own - topics - {"verification"})
    for name in rest:
        assert name in (BuildKeywords.__doc__ or "")
    for name in named:
        assert name in (iblip.build.__doc__ or "")


def test_a_build_is_made_where_it_was_asked_for(build, small):
    made, steps = build
    assert made.path.name == "small <1>"
    assert made.path.is_absolute()
    assert made.name == small.name
    assert made.family == "instructblip"
    assert made.precision == dict.fromkeys(made.engines, "fp32")
    assert set(made.engines.values()) == {"onnxruntime"}
    assert not made.is_verified
    assert (made.manifest.limits.slots, made.manifest.limits.max_batch) == (2, 4)
    stages = [step.text for step in steps if step.kind == "begin"]
    assert stages == [step.text for step in steps if step.kind == "end"]
    assert "write weights" in stages


def test_the_same_build_is_not_made_again(build, small):
    made, _ = build
    again = []
    options = {"slots": 2, "max_batch": 4, "verify": False, "progress": again.append}
    assert iblip.build(str(small), output=made.path, **options) == made
    assert [step.kind for step in again] == ["note"] * len(again)
    assert "is this build already" in again[-1].text


def test_a_build_is_a_path(build):
    made, _ = build
    assert os.fspath(made) == str(made) == str(made.path)
    assert Path(made) / "manifest.json" == made.path / "manifest.json"
    assert Build(made) == Build(str(made)) == Build(made.path) == made
    assert repr(made) == f"Build(path={made.path!r})"
    assert hash(made) == hash(Build(made.path))


def test_a_notebook_shows_a_build(build):
    shown = build[0]._repr_html_()
    for fact in ("fp32 on onnxruntime", "instructblip on llama", "24 x 24 pixels", "--no-verify"):
        assert fact in shown
    assert "small &lt;1&gt;" in shown
    assert "<1>" not in shown


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"max_bach": 3}, OptionError, "build has no option 'max_bach'. Did you mean 'max_batch'"),
        ({"flags": ["tf32"]}, OptionError, "build has no option 'flags'"),
        ({"max_batch": 0}, OptionError, "^max_batch is 0; expected 1 or more"),
        ({"llm_engine": "x"}, OptionError, "^llm_engine is 'x'; expected one of"),
        ({"builder_flags": "x"}, OptionError, "there is no builder_flags x"),
        ({"gpu_memory": "24"}, OptionError, "gpu_memory is '24'; expected a size above 0"),
        ({"executor": "ray"}, OptionError, "^executor is vLLM's. Add llm_engine vllm, or leave"),
        ({"output": 3}, OptionError, "output is 3; expected a path, as a str or a Path"),
        ({"examples": b"x"}, OptionError, "examples is b'x'; expected a path"),
        ({"calibration": "nowhere"}, OptionError, "^calibration nowhere is no directory"),
        ({"parts": {"vit": "x"}}, OptionError, "^parts is for models whose files lie apart"),
        ({"precision": "fp15"}, OptionError, "fp15"),
        ({"precision": 5}, OptionError, "^precision is 5; expected text"),
        ({"engine": None}, OptionError, "^engine is None; expected text"),
        ({"image_size": "x"}, OptionError, "^image_size is 'x'; expected an integer or None"),
        ({"limit": True}, OptionError, "^limit is True; expected an integer or None"),
        ({"verify": "no"}, OptionError, "^verify is 'no'; expected True or False"),
        ({"slots": "8"}, OptionError, "^slots is '8'; expected an integer or None"),
        ({"progress": 3}, OptionError, "progress is 3"),
    ],
)
def test_what_cannot_be_built_is_refused_in_terms_of_keywords(keywords, kind, message, small):
    with pytest.raises(kind, match=message) as caught:
        iblip.build(small, **keywords)
    assert "--" not in str(caught.value)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(IblipError, match="there is no checkpoint directory") as caught:
        iblip.build(tmp_path / "nothing")
    assert "Give model a local Hugging Face directory" in str(caught.value)
    with pytest.raises(
        IblipError, match=r"is not a Hugging Face checkpoint: it has no config.json"
    ):
        iblip.build(tmp_path)
    for nothing in ("", "a\0b"):
        with pytest.raises(OptionError, match=r"^model is '.*; expected a path"):
            iblip.build(nothing)
    # A Path is never a name of the hub, which a string of this form is.
    with pytest.raises(IblipError, match="there is no checkpoint directory"):
        iblip.build(Path("acme/tiny"))


def test_command_lines_in_messages_stay_as_they_are():
    from iblip.building import messages_in_keywords

    with pytest.raises(ServingError) as caught, messages_in_keywords():
        raise ServingError("Run `iblip build --force`, or give --triton PATH (--no-verify)")
    assert str(caught.value) == "Run `iblip build --force`, or give triton=PATH (verify=False)"


def test_what_is_no_build_is_refused(tmp_path):
    with pytest.raises(BuildDirectoryError, match="is not a build"):
        Build(tmp_path)
    with pytest.raises(BuildDirectoryError, match=r"there is no directory .*nothing"):
        Build("nothing")
    with pytest.raises(OptionError, match="the build is None; expected a path"):
        Build(None)  # type: ignore[arg-type]


def test_other_libraries_are_as_they_were(build, small):
    verbosity, filters = transformers.logging.get_verbosity(), list(warnings.filters)
    environment = dict(os.environ)
    with pytest.raises(OptionError):
        iblip.build(small, max_batch=0)
    assert transformers.logging.get_verbosity() == verbosity
    assert warnings.filters == filters
    assert dict(os.environ) == environment


WITHOUT = """\
import iblip
build, checkpoint = sys.argv[1:]
for call, directory in ((iblip.build, checkpoint), (iblip.verify, build), (iblip.load, build)):
    try:
        call(directory)
    except iblip.IblipError as error:
        print(error)
"""


def test_a_client_alone_says_what_is_missing(build, few_packages, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    python = few_packages("iblip")
    done = subprocess.run(
        [python, "-c", f"import sys\n{WITHOUT}", build[0], tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    told = done.stdout.splitlines()
    assert len(told) == 3, done.stderr
    assert "ONNX Runtime is not installed" in told[0]
    for line, call in zip(told[1:], ("verify", "load"), strict=True):
        assert line.startswith(f"iblip.{call} needs ")
    assert all("pip install" in line for line in told)
