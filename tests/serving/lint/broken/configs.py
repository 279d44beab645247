"""Config files that cannot be read, and models, versions and instances that do not fit them."""

from __future__ import annotations

from tests.serving.lint.broken.healthy import (
    ENSEMBLE,
    FIRST,
    GROUP,
    MODEL,
    UNREAD,
    Case,
    before_steps,
    below,
    case,
)

CASES = [
    Case("config-missing", FIRST, "", {FIRST: None}, "failed to open text file"),
    case(
        "config-syntax", FIRST, "count: 1 ]", (GROUP, "instance_group [ { count: 1 ]"), told=UNREAD
    ),
    case(
        "unknown-field",
        FIRST,
        "max_bath",
        ("max_batch_size: 4", "max_batch_size: 4 max_bath: 4"),
        told=UNREAD,
    ),
    case("unknown-value", FIRST, "KIND_GPUU", ("KIND_CPU", "KIND_GPUU"), told=UNREAD),
    case("unknown-value", FIRST, ": 9", ("KIND_CPU", "9"), told="unexpected kind"),
    case(
        "unknown-field", FIRST, "99", ("max_batch_size: 4", "max_batch_size: 4 99: 1"), told=UNREAD
    ),
    case(
        "config-syntax", FIRST, "_size:", ("max_batch_size: 4", "max_batch_size:\xa04"), told=UNREAD
    ),
    case("config-syntax", FIRST, 'name: "first"', ("name", "\ufeffname"), told=UNREAD),
    case("config-encoding", FIRST, "# caf", below("# caf\udce9")),
    Case("no-model", "plain", "", {"plain/notes": ""}, "failed to open text file"),
    case(
        "backend-misspelt",
        FIRST,
        "pyton",
        ('"python"', '"pyton"'),
        told="unable to find backend library",
    ),
    case(
        "backend-misspelt",
        FIRST,
        "onnxruntime_onnx",
        ('"python"', '"onnxruntime_onnx"'),
        told="unable to find backend library",
    ),
    case(
        "version-policy",
        FIRST,
        "latest",
        below("version_policy { latest { num_versions: 0 } }"),
        told="at least one version",
    ),
    case(
        "version-policy",
        FIRST,
        "specific",
        below("version_policy { specific { } }"),
        told="at least one version",
    ),
    Case(
        "version-missing",
        "first",
        "",
        {"first/1/model.py": None, "first/01/model.py": MODEL},
        "at least one version",
    ),
    case(
        "two-schedulers",
        ENSEMBLE,
        "dynamic_batching",
        before_steps("dynamic_batching { }"),
        told=UNREAD,
    ),
    case(
        "name-differs",
        FIRST,
        "fist",
        ('name: "first"', 'name: "fist"'),
        told="directory name must equal model name",
    ),
    case("max-batch-size-missing", FIRST, 'name: "first"', ("max_batch_size: 4\n", "")),
    case(
        "max-batch-size-negative",
        FIRST,
        "-4",
        ("max_batch_size: 4", "max_batch_size: -4"),
        told="must be non-negative",
    ),
    Case("version-missing", "chain", "", {"chain/1/.keep": None}, "at least one version"),
    case(
        "version-policy",
        FIRST,
        "versions",
        below("version_policy {\nspecific { versions: [ 3 ] }\n}"),
        told="at least one version",
    ),
    case(
        "platform-unknown",
        FIRST,
        "plann",
        ('backend: "python"', 'platform: "tensorrt_plann"'),
        told="unexpected platform type",
    ),
    case("backend-missing", FIRST, 'name: "first"', ('backend: "python"\n', "")),
    case("platform-and-backend", FIRST, "backend", below('platform: "tensorrt_plan"')),
    case(
        "gpus-without-gpu",
        FIRST,
        "gpus",
        ("kind: KIND_CPU", "kind: KIND_CPU\n gpus: [ 0 ]"),
        told="specifies one or more GPUs",
    ),
    case(
        "profile-elsewhere",
        FIRST,
        "profile",
        ("kind: KIND_CPU", 'kind: KIND_CPU\n profile: "0"'),
        told="only supported for TensorRT",
    ),
    case(
        "backend-not-offered",
        FIRST,
        "onnxruntime",
        ('"python"', '"onnxruntime"'),
        told="unable to find backend library",
        others=("model-file",),
    ),
]
