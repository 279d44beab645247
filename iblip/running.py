"""`run`: many images asked about, one line of JSON for each, and none twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from iblip.building import Build
from iblip.engines.language_model.keywords import (
    GenerationKeywords,
    Options,
    options_with_keywords,
)
from iblip.engines.vision_cache.directory import cache_directory
from iblip.export.errors import OptionError
from iblip.export.images import Reading, check_reading
from iblip.export.system.arguments import checked
from iblip.export.system.paths import PathLike, path_from
from iblip.libraries import installed
from iblip.serving.bulk.rows import Shard, read_rows
from iblip.serving.bulk.running import BulkSummary, Job, run_job
from iblip.serving.bulk.targets import PATIENCE, Targets, targets_of
from iblip.serving.client.messages import DEFAULT_URL, GREEDY
from iblip.serving.client.patience import Timeout
from iblip.serving.client.security import TLS

if TYPE_CHECKING:
    from iblip.serving.client.tally import Watcher


@checked
def run(
    input: PathLike,  # noqa: A002 the command's own word
    output: PathLike,
    *,
    prompt: str | Sequence[str] | None = None,
    build: PathLike | None = None,
    url: str | Sequence[str] | None = None,
    shard: str = "1/1",
    options: Options = GREEDY,
    compat: str | None = None,
    preprocessing: Reading = "viewed",
    timeout: Timeout | float | None = PATIENCE,
    threads: int | None = None,
    vision_cache: PathLike | None = None,
    vision_cache_mib: int | None = None,
    tls: TLS | bool | None = None,
    token: str | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: bool | Watcher = False,
    **keywords: Unpack[GenerationKeywords],
) -> BulkSummary:
    """Asks about every image of an input; appends one line of JSON for each question to a file.

        iblip.run("photos", "captions.jsonl", prompt="Describe the image.", build="build/demo")

    A run that was ended, however it was, goes on when it is called again. A question that cannot
    be answered has a line with an error, and the others go on.

    Args:
        input: a folder of images; JSONL or CSV with `image`, `prompt`, `id` and `options`; a tar of
            WebDataset; or Parquet.
        output: the file of answers, JSONL.
        prompt: for rows that have none of their own; several are each asked.
        build: a `Build`, or the path of its directory, to run in this process.
        url: of a server, or of several with the same build; without either, the one on this
            machine.
        shard: the part of the rows to ask about, such as `"2/8"`; rows are parted by their ids.
        options: how to generate; greedy by default. May be a mapping, by name.
        compat: the original to answer like, `"lavis"`, `"hf"` or `"minigpt4"`.
        preprocessing: how image files become RGB, `"viewed"` or `"lavis"`.
        timeout: for each question to a server: how long it is waited for, and for its answer.
        threads: of one operator, on a CPU, with `build`.
        vision_cache, vision_cache_mib: as in `load`, with `build`.
        tls, token, metadata: as in `Client`.
        progress: `True` shows a line on stderr; a function is called after each row with a
            `MapProgress`.
        keywords: options by name, such as `max_new_tokens=30`; they override `options`.

    Raises:
        OptionError: an option is out of range; the output was begun by another run, or another
            process writes it; both `build` and `url` are given, or `vision_cache` and no `build`.
        InputError: the input cannot be read, or two rows have one id and prompt.
        ClientError, EngineError: nothing answers any more; what came before is in the output.
        OSError: the output cannot be written.
    """
    if build is not None and url is not None:
        raise OptionError("build and url are given; expected one of them")
    if build is None and vision_cache is not None:
        raise OptionError("vision_cache is given without build; a server has its own")
    urls = [url or DEFAULT_URL] if url is None or isinstance(url, str) else list(url)
    connection: dict[str, Any] = {"tls": tls, "token": token, "metadata": metadata}
    job = Job(
        options=options_with_keywords(options, keywords),
        prompts=(prompt,) if isinstance(prompt, str) else tuple(prompt or ()),
        compat=compat,
        preprocessing=check_reading(preprocessing),
        shard=Shard.parse(shard),
    )
    rows = read_rows(path_from(input, "input"))
    directory = None if build is None else _directory(build)
    patience = Timeout.settled(timeout, PATIENCE)
    connections = [{**connection, "url": one} for one in urls]
    cache = cache_directory(vision_cache, vision_cache_mib)
    with (
        installed("iblip.run"),
        targets_of(connections, directory, threads, patience, cache) as opened,
    ):
        return run_job(rows, Targets(opened), path_from(output, "output"), job, progress=progress)


def _directory(build: PathLike) -> Any:
    return (build if isinstance(build, Build) else Build(build)).path
