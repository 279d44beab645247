"""The command line: `build`, `heldout`, `evaluate`, `card`, `adapter` and `counting`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT.parent / ".cache" / "checkpoints"
MODELS = ("vicuna", "flant5", "blip2-opt", "blip2-flant5", "minigpt4", "minigpt4-llama2")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m checkpoints.training", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="train one model and write its directory")
    build.add_argument("model", choices=MODELS)
    build.add_argument("--output", type=Path, default=ROOT, help="parent of the directory")
    build.add_argument("--cache", type=Path, default=CACHE, help="pools and finished stages")
    build.add_argument("--shorten", type=float, default=1.0, help="divide the steps, for a trial")
    build.add_argument("--until", default="polish", help="last stage to run (default: polish)")
    heldout = commands.add_parser("heldout", help="write the held-out examples")
    heldout.add_argument("--output", type=Path, default=ROOT / "heldout")
    evaluate = commands.add_parser("evaluate", help="answer the held-out questions")
    evaluate.add_argument("checkpoint", type=Path)
    evaluate.add_argument("--empty-qformer-instruction", action="store_true")
    evaluate.add_argument("--limit", type=int, help="ask only the first so many")
    evaluate.add_argument("--json", action="store_true", help="print JSON, wrong answers included")
    card = commands.add_parser("card", help="put measured figures into a checkpoint's README")
    card.add_argument("checkpoint", type=Path)
    adapter = commands.add_parser("adapter", help="train a LoRA that counts to six; needs peft")
    adapter.add_argument("checkpoint", type=Path)
    adapter.add_argument("--output", type=Path, required=True, help="directory of the adapter")
    adapter.add_argument(
        "--part",
        dest="parts",
        action="append",
        choices=["language_model", "qformer"],
        help="that gets LoRA; repeatable (default: both)",
    )
    adapter.add_argument("--steps", type=int, default=300)
    counting = commands.add_parser("counting", help="write held-out examples of counting to six")
    counting.add_argument("--output", type=Path, required=True)
    counting.add_argument("--count", type=int, default=200)
    counting.add_argument("--beyond", action="store_true", help="for LoRA on a Q-Former")
    return parser


def _build(arguments: argparse.Namespace) -> None:
    from .build import BuildOptions, build

    options = BuildOptions(shorten=arguments.shorten, until=arguments.until)
    build(arguments.model, arguments.output, arguments.cache, options)


def _heldout(arguments: argparse.Namespace) -> None:
    from .heldout import write_heldout

    size = write_heldout(arguments.output)
    print(f"wrote {arguments.output}: {size / 1e6:.1f} MB of images")


def _evaluate(arguments: argparse.Namespace) -> None:
    from .evaluation import evaluate

    result = evaluate(
        arguments.checkpoint,
        empty_instruction=arguments.empty_qformer_instruction,
        limit=arguments.limit,
    )
    print(result.as_json() if arguments.json else result.as_table())


def _card(arguments: argparse.Namespace) -> None:
    from .card import write_card

    print(write_card(arguments.checkpoint))


def _adapter(arguments: argparse.Namespace) -> None:
    from .adapters import TARGETS, train_adapter

    parts = arguments.parts or list(TARGETS)
    loss = train_adapter(arguments.checkpoint, arguments.output, parts, steps=arguments.steps)
    print(f"wrote {arguments.output}: loss {loss:.3f}")


def _counting(arguments: argparse.Namespace) -> None:
    from .adapters import BEYOND, COUNTING, write_counting

    write_counting(BEYOND if arguments.beyond else COUNTING, arguments.output, arguments.count)
    print(f"wrote {arguments.output}: {arguments.count} examples")


COMMANDS = {
    "build": _build,
    "heldout": _heldout,
    "evaluate": _evaluate,
    "card": _card,
    "adapter": _adapter,
    "counting": _counting,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.command not in ("heldout", "counting"):
        import torch

        torch.set_num_threads(arguments.threads)
    COMMANDS[arguments.command](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
