"""LAVIS's entry point, over a build or a server: people who come from LAVIS change one import.

    from iblip.lavis import load_model_and_preprocess

    model, vis_processors, txt_processors = load_model_and_preprocess(
        name="blip2_vicuna_instruct", model_type="vicuna7b", is_eval=True, device=device
    )
    image = vis_processors["eval"](raw_image).unsqueeze(0).to(device)
    model.generate({"image": image, "prompt": "What is unusual about this image?"})

Works with torch installed or not. What differs from LAVIS, docs/compat.md says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
from PIL import Image

from iblip.building import Build
from iblip.export.errors import InputError, OptionError
from iblip.export.images import ImageSource, pixels_from_image
from iblip.export.models.model import Model as ReleasedModel
from iblip.export.system.arguments import checked
from iblip.export.system.paths import PathLike, path_from
from iblip.finding import build_model, find_build, model_of_lavis, needs_gpu
from iblip.progress import ProgressOption
from iblip.serving.client.lavis_batches import (
    GenerateArguments,
    PredictArguments,
    Ranks,
    Samples,
    Texts,
)
from iblip.tensors import is_normalised, pixels_from_tensor, tensor_from_pixels

if TYPE_CHECKING:
    from iblip.loading import Model
    from iblip.serving.client.sync import Client
    from iblip.serving.wire.contract import ServerContract

CAPTION_PROMPT = "a photo of"
"""What LAVIS's captioners are asked where a sample has no prompt (`blip2_caption_*.yaml`)."""

MAX_WORDS = 50
"""Words that LAVIS's `blip_caption` leaves of a text."""

_MARKS = re.compile(r'[.!"()*#:;~]')
"""Characters that it replaces with spaces."""


class ImageProcessor:
    """`vis_processors["eval"]`: an image as the normalised tensor that LAVIS's models take.

    Args:
        contract: says how large images are.
    """

    def __init__(self, contract: ServerContract) -> None:
        self._settings = contract.preprocessing

    def __call__(self, item: ImageSource) -> Any:
        """Resizes an image with Pillow's bicubic filter, and normalises it.

        Args:
            item: a Pillow image; as in LAVIS its EXIF orientation is not applied. Or anything else
                that `Client.ask` takes as an image, prepared as there.

        Returns:
            float32 `[3, height, width]`: a `torch.Tensor`, or an `Array` where torch is not
            installed.

        Raises:
            InputError: it is not an image.
        """
        if isinstance(item, Image.Image):
            item = np.asarray(item.convert("RGB"))
        return tensor_from_pixels(pixels_from_image(item, self._settings))


class TextProcessor:
    """`txt_processors["eval"]`: LAVIS's `blip_caption`, which all of these models are given.

    Lower case, without the characters `. ! " ( ) * # : ; ~`, and at most 50 words.
    """

    def __call__(self, caption: str) -> str:
        """The text, processed."""
        text = re.sub(r"\s{2,}", " ", _MARKS.sub(" ", caption.lower()))
        return " ".join(text.rstrip("\n").strip(" ").split(" ")[:MAX_WORDS])


class LavisModel:
    """The model that `load_model_and_preprocess` returns. Thread-safe; a context manager.

    Attributes:
        device: as it was given.
    """

    def __init__(
        self, asker: Model | Client, released: ReleasedModel, device: Any, *, owned: bool = True
    ) -> None:
        self._asker, self._owned = asker, owned
        self.device = device
        size = asker.contract().preprocessing
        self._size = (size.height, size.width)
        is_captioner = "caption_coco" in (released.lavis or "")
        self._defaults = {"prompt": CAPTION_PROMPT} if is_captioner else {}

    def generate(self, samples: Samples, **arguments: Unpack[GenerateArguments]) -> Texts:
        """Texts for images: `num_captions` for each.

        Args:
            samples: `image`: a batch `[batch, 3, height, width]` from `vis_processors["eval"]`,
                videos `[batch, 3, frames, height, width]`, or a list of images of any kind that
                `Client.ask` takes; `prompt`: one text, or one for each image; `ocr_tokens`.
            arguments: LAVIS's own, with its defaults: `num_beams=5`, `max_length=256`, …

        Returns:
            A list of texts; its `answers` have tokens, scores and times.

        Raises:
            InputError, OptionError: a sample or an argument cannot be used.
            IblipError: as `Client.ask`.
        """
        filled = {**self._defaults, **self._prepared(samples)}
        return self._asker.lavis.generate(filled, **arguments)

    def predict_answers(self, samples: Samples, **arguments: Unpack[PredictArguments]) -> Texts:
        """Short answers to `text_input`, one for each image; see `generate`."""
        return self._asker.lavis.predict_answers(self._prepared(samples), **arguments)

    def predict_class(
        self,
        samples: Samples,
        candidates: Sequence[str] | Sequence[Sequence[str]],
        n_segments: int = 1,
    ) -> Ranks:
        """For each image, the indices of its candidates, the most likely first; see `generate`.

        Args:
            samples: `image`, and the instruction as `prompt`; `text_input`, `context`, `history`
                and `caption` as in LAVIS.
            candidates: texts for all images, or a list of texts for each image.
            n_segments: parts in which LAVIS scores the candidates; it changes the order as there.
        """
        return self._asker.lavis.predict_class(self._prepared(samples), candidates, n_segments)

    def _prepared(self, samples: Samples) -> dict[str, Any]:
        """The samples, with images that are tensors as a list of pixels."""
        prepared = dict(samples)
        if "image" in prepared:
            prepared["image"] = list(self._images(prepared["image"]))
        return prepared

    def _images(self, image: Any) -> Iterator[Any]:
        if is_normalised(image):
            yield from pixels_from_tensor(image, self._size)
        elif isinstance(image, list | tuple):
            for one in image:
                yield from self._images(one)
        else:
            yield image

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The model itself: its engines stay on the device that the build is for."""
        return self

    def eval(self) -> Self:
        """The model itself: a build only answers."""
        return self

    def close(self) -> None:
        """Frees the engines, or closes the connection; a `client` that was given stays open."""
        if self._owned:
            self._asker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LavisModel on {self._asker!r}>"


class _Processors(dict[str, Any]):
    """Processors by split; there is no `train`."""

    def __missing__(self, split: str) -> Any:
        raise InputError(f"there is no processor {split!r}, only 'eval': a build does not train")


@checked
def load_model_and_preprocess(
    name: str,
    model_type: str,
    is_eval: bool = False,
    device: Any = "cpu",
    *,
    url: str | None = None,
    client: Client | None = None,
    build: PathLike | None = None,
    builds: PathLike = "build",
    parts: Mapping[str, PathLike] | None = None,
    checkpoint: PathLike | None = None,
    precision: str | None = None,
    verify: bool = True,
    progress: ProgressOption = True,
) -> tuple[LavisModel, dict[str, Any], dict[str, Any]]:
    """Loads a model by LAVIS's name for it, with its processors.

    It is looked for in this order: at a server (`url` or `client`), in the directory `build`, among
    the directories in `builds`; and if it is in none of them, it is built there from `parts` or
    `checkpoint`, once. A model in this process runs until `close`, or until it is collected.

    Args:
        name: such as `blip2_vicuna_instruct`, `blip2_t5_instruct`, `blip2_opt`, `blip2_t5`.
        model_type: such as `vicuna7b`, `flant5xl`, `pretrain_opt2.7b`.
        is_eval: without effect: a build only answers.
        device: `"cpu"`, `"cuda"`, `"cuda:1"` or a `torch.device`: where engines run. A build for
            another kind of device is not taken. Without effect with a server.
        url: `host:port` of a server that serves the model (`iblip serve`).
        client: an `iblip.Client` in the place of `url`, for TLS or a token.
        build: a `Build`, or the path of its directory.
        builds: directory that holds builds.
        parts: LAVIS's files, by the names that `--part` has: `checkpoint`, `vit`, `language_model`,
            `qformer_tokenizer`.
        checkpoint: in the place of `parts`, a directory in Hugging Face form or a model of the hub,
            such as `Salesforce/instructblip-vicuna-7b`, which is then downloaded.
        precision: of the build; `None` takes the latest that is there, and builds `fp32` for a CPU
            and LAVIS's own mixture, `lavis`, for a GPU.
        verify: whether a new build is compared with transformers.
        progress: of building; see `iblip.build`.

    Returns:
        The model; the image processors and the text processors, by split: `eval` alone.

    Raises:
        OptionError: LAVIS has no such model here, or another model is built or served there.
        BuildDirectoryError: there is no build, and nothing to build it from.
        IblipError: as `iblip.build`, `iblip.load`, `Client.contract`.
    """
    released = model_of_lavis(name, model_type)
    asker: Model | Client
    if url is not None or client is not None:
        asker = _client(url, client)
        place = f"the server at {asker.url}"
    else:
        from iblip.loading import load

        number = _device_number(device)
        found = None if build is None else Build(build)
        if found is None:
            folder = path_from(builds, "builds")
            found = find_build(
                released, folder, precision=precision, on_gpu=number is not None
            ) or build_model(
                released,
                folder,
                parts=parts,
                checkpoint=checkpoint,
                precision=precision or ("fp32" if number is None else "lavis"),
                verify=verify,
                progress=progress,
            )
        _check_device(found, number, device)
        asker, place = load(found, device=number or 0), str(found)
    try:
        contract = asker.contract()
        _check_model(released, contract, place)
        model = LavisModel(asker, released, device, owned=client is None)
    except BaseException:
        if client is None:
            asker.close()
        raise
    vision = _Processors(eval=ImageProcessor(contract))
    return model, vision, _Processors(eval=TextProcessor())


def _device_number(device: Any) -> int | None:
    """Number of the GPU; `None` for the CPU."""
    kind, _, number = str(device).partition(":")
    if kind == "cpu":
        return None
    if kind != "cuda" or not (number.isdigit() or not number):
        raise OptionError(f'device is {str(device)!r}; expected "cpu", "cuda" or "cuda:N"')
    return int(number or 0)


def _client(url: str | None, client: Client | None) -> Client:
    from iblip.serving.client.sync import Client

    if client is None:
        assert url is not None
        return Client(url)
    if url is not None:
        raise OptionError("url and client are given; expected one of them")
    return client


def _check_device(build: Build, number: int | None, device: Any) -> None:
    if needs_gpu(build) and number is None:
        engines = ", ".join(dict.fromkeys(build.engines.values()))
        raise OptionError(
            f"device is {str(device)!r}, and {build} is for a GPU ({engines}). Give "
            'device="cuda", or build it with engine="onnxruntime" for the CPU.'
        )


def _check_model(released: ReleasedModel, contract: ServerContract, place: str) -> None:
    """Refuses a model of another family or language model, whose calls have other defaults."""
    wanted = (released.family.name, released.text["model_type"])
    found = (contract.build.family, contract.build.language_model)
    if wanted != found:
        raise OptionError(
            f"{released.lavis} is {' on '.join(wanted)}, and {place} has {contract.build.name}, "
            f"which is {' on '.join(found)}"
        )
