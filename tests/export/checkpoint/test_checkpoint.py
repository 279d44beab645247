import json

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.facts import language_model_facts, preprocessing
from iblip.export.errors import CheckpointError
from iblip.export.exporter import graphs_from_checkpoint
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_directory_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        checkpoint_from_directory(tmp_path / "none")


def test_a_directory_that_is_no_checkpoint_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        checkpoint_from_directory(tmp_path)


def test_an_adapter_without_its_model_says_how_to_merge_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(CheckpointError, match=r"adapter of some/base .*merge_and_unload"):
        checkpoint_from_directory(tmp_path)


def test_another_architecture_is_named_with_the_supported_ones(tiny_copy):
    directory = tiny_copy("vicuna")
    edit(directory / "config.json", architectures=["LlavaForConditionalGeneration"])
    message = "holds a LlavaForConditionalGeneration; supported.*InstructBlipFor.*Blip2For"
    with pytest.raises(CheckpointError, match=message):
        checkpoint_from_directory(directory)


def test_a_truncated_weights_file_is_told(tiny_copy):
    weights = tiny_copy("vicuna") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="Download it again"):
        checkpoint_from_directory(weights.parent)


def test_a_tokenizer_without_eos_is_told(tiny_copy):
    directory = tiny_copy("vicuna")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["eos_token"] = None
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no end-of-sequence token"):
        language_model_facts(checkpoint_from_directory(directory))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"word_embed_proj_dim": 16},
            "this OPT has word_embed_proj_dim 16 and hidden_size 32; supported: the two equal",
        ),
        ({"model_type": "gpt2"}, "a language model of type 'gpt2'; supported: llama, mistral"),
    ],
    ids=str,
)
def test_a_language_model_that_cannot_be_exported_is_named(tiny_copy, tmp_path, changes, message):
    directory = tiny_copy("opt")
    config = json.loads((directory / "config.json").read_text())
    config["text_config"] |= changes
    (directory / "config.json").write_text(json.dumps(config))
    checkpoint = checkpoint_from_directory(directory)
    with pytest.raises(CheckpointError, match=message):
        graphs_from_checkpoint(checkpoint, PrecisionPolicy.parse("fp32"), tmp_path, Silent())


def test_a_processor_that_leaves_no_room_for_the_image_is_told(tiny_copy):
    directory = tiny_copy("opt")
    edit(directory / "processor_config.json", num_query_tokens=None)
    message = r"has num_query_tokens None, and the model 4\. Set it to 4 in processor_config"
    with pytest.raises(CheckpointError, match=message):
        preprocessing(checkpoint_from_directory(directory))


def test_a_config_without_an_image_token_says_which_it_is(tiny_copy):
    directory = tiny_copy("opt")
    wanted = json.loads((directory / "config.json").read_text())["image_token_index"]
    edit(directory / "config.json", image_token_index=None)
    message = f"has no image_token_index.* Set it to {wanted}, the tokenizer's <image>"
    with pytest.raises(CheckpointError, match=message):
        language_model_facts(checkpoint_from_directory(directory))


def test_eos_is_the_tokenizers_where_the_config_disagrees(tiny_copy):
    directory = tiny_copy("vicuna")
    edit(directory / "generation_config.json", eos_token_id=1, bos_token_id=0)
    facts = language_model_facts(checkpoint_from_directory(directory))
    assert facts.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generation_config.json is not valid JSON"),
        ("[]", "generation_config.json holds a list, expected an object"),
        ('{"max_new_tokens": 0}', "generation_config.json is refused by transformers"),
    ],
)
def test_a_generation_config_that_is_none_is_named(tiny_copy, text, message):
    directory = tiny_copy("vicuna")
    (directory / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        language_model_facts(checkpoint_from_directory(directory))


def resize_processor(directory, size):
    path = directory / "processor_config.json"
    data = json.loads(path.read_text())
    data["image_processor"]["size"] = size
    path.write_text(json.dumps(data))
    # What older versions of transformers wrote beside it, or alone.
    (directory / "preprocessor_config.json").write_text(json.dumps(data["image_processor"]))


def test_the_models_own_size_goes_before_the_image_processors(tiny_copy):
    directory = tiny_copy("vicuna")
    resize_processor(directory, {"height": 96, "width": 96})
    checkpoint = checkpoint_from_directory(directory)
    found = preprocessing(checkpoint)
    assert (found.height, found.width) == (24, 24)
    images = checkpoint.processor.image_processor(Image.new("RGB", (50, 40)), return_tensors="np")
    assert images["pixel_values"].shape == (1, 3, 24, 24)


def test_an_image_processor_that_keeps_proportions_is_told(tiny_copy):
    directory = tiny_copy("vicuna")
    resize_processor(directory, {"shortest_edge": 24})
    with pytest.raises(CheckpointError, match="takes squares of 24 pixels"):
        preprocessing(checkpoint_from_directory(directory))


def test_a_config_that_does_not_fit_the_weights_lists_them(tiny_copy, traces, tmp_path):
    directory = tiny_copy("vicuna")
    weights = directory / "model.safetensors"
    last = "vision_model.encoder.layers.1."  # of the two that the config has
    kept = {name: t for name, t in load_file(weights).items() if not name.startswith(last)}
    save_file(kept, weights, metadata={"format": "pt"})
    checkpoint = checkpoint_from_directory(directory)
    message = r"vision_model\.encoder\.layers\.1\..* is missing \(nearest: vision_model"
    with pytest.raises(CheckpointError, match=message):
        graphs_from_checkpoint(
            checkpoint, PrecisionPolicy.parse("fp32"), tmp_path, Silent(), traces=traces
        )


@pytest.mark.parametrize("folder", [".", "qformer_tokenizer"])
def test_a_checkpoint_without_a_tokenizer_is_refused(tiny_copy, folder):
    """transformers would take another one, and the build would be compared with its answers."""
    directory = tiny_copy("vicuna")
    for file in (directory / folder).glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: none of tokenizer\.json, .*save"):
        checkpoint_from_directory(directory)
