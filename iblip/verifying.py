"""`verify`: compares builds with transformers, stage by stage, and returns a `Report`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iblip.building import Build, messages_in_keywords, model_from
from iblip.export.errors import OptionError
from iblip.export.system.arguments import checked
from iblip.export.system.paths import PathLike, path_from
from iblip.libraries import installed, quiet
from iblip.progress import ProgressOption, progress_from

if TYPE_CHECKING:
    from iblip.serving.parity.report import Report as ParityReport


class Report:
    """How builds compare with transformers. True if every build is within its thresholds.

    Attributes:
        builds: the builds, in the order in which they were given.
    """

    def __init__(self, report: ParityReport, builds: tuple[Build, ...]) -> None:
        self._report = report
        self.builds = builds

    @property
    def passed(self) -> bool:
        """Whether every build is within its thresholds."""
        return bool(self._report)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def verdict(self) -> str:
        """One sentence: whether the builds pass, and what fails, as `iblip verify` ends."""
        return self._report.verdict

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, JSON-ready; `format` is its version."""
        return self._report.to_json()

    def save(self, path: PathLike | None = None) -> Path:
        """Writes the report as one HTML page, and its data beside it as JSON.

        Args:
            path: of the page; its name ends in `.html`. `None` is `verification/report.html` in
                the first build.

        Returns:
            The path of the page.

        Raises:
            OptionError: the name ends otherwise, or its directory is missing or read-only.
        """
        from iblip.serving.parity.writing import check_page, page_of, write_report

        with messages_in_keywords():
            page = page_of(self.builds[0].path) if path is None else path_from(path, "the page")
            check_page(page)
        return write_report(self._report, page)[0]

    def __str__(self) -> str:
        from iblip.serving.parity.text import text_from_report

        return text_from_report(self._report)

    def __repr__(self) -> str:
        word = "passed" if self.passed else "failed"
        return f"<Report of {', '.join(map(str, self.builds))}: {word}>"

    def _repr_html_(self) -> str:
        from iblip.serving.parity.html import page_from_report

        page = escape(page_from_report(self.to_json()))
        return (
            f"<div>{escape(self.verdict)}</div>"
            f'<iframe srcdoc="{page}" sandbox width="100%" height="600" '
            'style="border:0" title="report"></iframe>'
        )


@checked
def verify(
    *builds: PathLike,
    model: PathLike | None = None,
    revision: str | None = None,
    parts: Mapping[str, PathLike] | None = None,
    adapters: Iterable[PathLike] = (),
    examples: PathLike | None = None,
    limit: int | None = None,
    stages: tuple[str, ...] = (),
    reference: str = "auto",
    progress: ProgressOption = True,
) -> Report:
    """Compares builds of one checkpoint with transformers: pixels, every block, answers, batches.

        report = iblip.verify(build)
        report.passed, report.save("report.html")

    Args:
        builds: one or more, each a `Build` or the path of its directory.
        model, revision, parts, adapters: where the checkpoint and its adapters are now, if they
            have moved; see `build`.
        examples: directory with `examples.jsonl`; `None` is the checkpoint's own.
        limit: use at most so many examples.
        stages: run only these: `preprocessing`, `vision_encoder`, `qformer`, `language_model`,
            `first_token`, `graphs`, `text`, `beams`, `accuracy`, `batching`, `padding`.
        reference: how transformers runs: `whole` in memory, `streamed` from the checkpoint one
            layer at a time, or `auto`: streamed if it does not fit into memory.
        progress: as in `build`.

    Returns:
        The report, also of a build that fails: see `Report.passed`.

    Raises:
        OptionError: no build is given or one twice, or there is no such stage.
        BuildDirectoryError: a directory is not a build, or its files differ from its manifest.
        CheckpointError: the checkpoint is missing, or is not the one that a build was made from.
        IblipError: a library that verifying needs is not installed.
    """
    shown, opened = progress_from(progress), tuple(map(Build, builds))
    if not opened:
        raise OptionError("verify was given no build; expected one or more")
    with messages_in_keywords(), installed("iblip.verify"), quiet():
        from iblip.export.opening import source_of_build
        from iblip.serving.parity.running import ParityOptions, parity_report

        if model is not None:
            model = model_from(model)
            model = model if isinstance(model, str) else str(Path(model).absolute())
        files = {name: path_from(path, f"the part {name}") for name, path in (parts or {}).items()}
        options = ParityOptions(
            source=source_of_build(opened[0].path, model, revision, files, adapters),
            examples=None if examples is None else path_from(examples, "examples"),
            limit=limit,
            stages=(stages,) if isinstance(stages, str) else tuple(stages),
            reference=reference,
        )
        return Report(parity_report([one.path for one in opened], shown, options), opened)
