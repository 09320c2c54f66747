"""``preview``: training examples as the model sees them, and a summary of the data; no weights are read."""

import logging
from argparse import ArgumentError
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import rich
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

import bishare.data
from bishare.commands.config.messages import explain
from bishare.commands.config.sections import devices_of, strategy_of
from bishare.commands.config.settings import is_classification
from bishare.commands.fit.command import users_mistake
from bishare.commands.quiet import silence_known_noise
from bishare.data.classification import ClassificationData, LabelledExamples
from bishare.data.encoding import NO_LABEL
from bishare.data.prompt_data import PromptData
from bishare.data.step_sampler import choose_accumulation
from bishare.data.streamed import StreamedData
from bishare.errors import UserError
from bishare.models.loading import load_base_config
from bishare.training.classification import ClassificationModule
from bishare.training.module import BiShareModule
from bishare.training.vocabulary_check import check_vocabulary

TRAINED = "bold green"


def run(command: str, arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: For every mistake in the configuration or the data.
    """
    silence_known_noise()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # the summary below says more than Lightning
    config = _parse(command, arguments)
    if config.n < 1:
        raise UserError(f"n is {config.n}; it must be at least 1.")
    data = _build(config)
    data.prepare_data()
    data.setup("fit")
    _check_vocabulary(data)
    trainer = config.trainer.as_dict()
    _, num_devices = devices_of(trainer, strategy_of(trainer)[1])
    console = rich.get_console()
    for index in range(min(config.n, len(data.examples))):
        if isinstance(data, ClassificationData):
            show_labelled(console, data, index)
        else:
            show_example(console, data, index)
    console.print(summary(data, num_devices))
    for remark in data.remarks() if isinstance(data, PromptData) else ():
        console.print(Text(remark), soft_wrap=True)


def _check_vocabulary(data: PromptData | ClassificationData) -> None:
    if data.base.startswith("package:") or data.base.endswith(".gguf"):
        return  # the tokenizer is made from the same file as the model
    text = load_base_config(data.base).get_text_config()
    check_vocabulary(data, text.vocab_size)


def show_example(console: Console, data: PromptData, index: int) -> None:
    """Print a training example with the trained tokens in colour, or in brackets without colours."""
    examples = data.examples
    span = slice(examples.offsets[index], examples.offsets[index + 1])
    ids, labels = examples.input_ids[span].tolist(), examples.labels[span].tolist()
    numbers = f"{len(ids):,} tokens, {examples.num_labels[index]:,} of them trained"
    console.print(Text(f"Example {index + 1}: {numbers}", style="bold"))
    text = Text()
    for part, trained in marked(data.tokenizer, ids, labels):
        if trained and console.is_terminal and not console.no_color:
            text.append(part, style=TRAINED)
        else:
            text.append(f"[[{part}]]" if trained else part)
    console.print(text, soft_wrap=True)
    console.print()


def show_labelled(console: Console, data: ClassificationData, index: int) -> None:
    """Print an example to classify after tokenisation, with the label."""
    examples = data.examples
    assert isinstance(examples, LabelledExamples)
    ids = examples.input_ids[examples.offsets[index] : examples.offsets[index + 1]].tolist()
    label = f"label {examples.targets[index].item():g}"
    console.print(Text(f"Example {index + 1}: {len(ids):,} tokens, {label}", style="bold"))
    console.print(Text(str(data.tokenizer.decode(ids, clean_up_tokenization_spaces=False))), soft_wrap=True)
    console.print()


def marked(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], labels: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """Parts of an example's text, each with whether the tokens are trained; the first token never is."""
    trained = [False, *(label != NO_LABEL for label in labels[1:])]
    place, before = 0, ""
    for is_trained, run in groupby(trained):
        place += len(list(run))
        # Decoded from the beginning, since the text of a token depends on earlier tokens.
        text = str(tokenizer.decode(list(ids[:place]), clean_up_tokenization_spaces=False))
        yield text[len(before) :], is_trained
        before = text


def summary(data: PromptData | ClassificationData, num_devices: Sequence[int]) -> Table:
    """A table of numbers and lengths of the examples, the trained share, and the micro-batches of a step.

    Args:
        data: After ``setup("fit")``.
        num_devices: Numbers of devices for the step; of several numbers, those that can share the step are shown.
    """
    examples, table = data.examples, Table.grid(padding=(0, 2))
    lengths = examples.lengths
    streamed = isinstance(data, StreamedData)
    table.add_row("examples", f"{len(examples):,}" + (" (the first of a stream)" if streamed else ""))
    if isinstance(data, PromptData):
        if data.num_unanswered:
            table.add_row("without an answer", f"{data.num_unanswered:,} rows, left out")
        table.add_row("dropped", f"{data.num_dropped:,} (no token of an answer within max_length)")
    table.add_row("cut", f"{data.num_cut:,} to max_length {data.max_length:,}")
    table.add_row(
        "tokens each",
        f"{lengths.min():,} to {lengths.max():,}, median {np.median(lengths):,.0f}, mean {lengths.mean():,.0f}, "
        f"95 % have at most {np.quantile(lengths, 0.95):,.0f}",
    )
    if isinstance(examples, LabelledExamples):
        table.add_row("labels", _labels(examples))
    else:
        table.add_row("trained", f"{int(examples.num_labels.sum()) / int(lengths.sum()):.0%} of the tokens")
    table.add_row("optimizer step", f"{data.batch_size:,} examples, about {_tokens_per_step(data):,.0f} tokens")
    table.add_row("micro-batches", "; ".join(_micro_batches(data, num_devices)))
    if not streamed:
        table.add_row("epoch", f"{data.steps_per_epoch:,} optimizer steps")
    return table


def _labels(examples: LabelledExamples) -> str:
    """The range of scores, or the number of examples of each class."""
    counts = sorted(Counter(examples.targets.tolist()).items())
    if examples.targets.is_floating_point():
        return f"scores from {counts[0][0]:g} to {counts[-1][0]:g}"
    return ", ".join(f"{label}: {count:,}" for label, count in counts)


def _tokens_per_step(data: PromptData | ClassificationData) -> float:
    return float(data.examples.lengths.mean()) * data.batch_size


def _micro_batches(data: PromptData | ClassificationData, num_devices: Sequence[int]) -> Iterator[str]:
    """The accumulation for each number of devices."""
    for count in num_devices:
        # Of several guessed numbers, some cannot share the step.
        if len(num_devices) > 1 and (data.batch_size % count or len(data.examples) < count):
            continue
        accumulation = choose_accumulation(
            data.examples.lengths,
            batch_size=data.batch_size,
            tokens_per_micro_batch=data.tokens_per_micro_batch,
            world_size=count,
        )
        tokens = _tokens_per_step(data) / (count * accumulation)
        yield f"{accumulation} of about {tokens:,.0f} tokens on {count} device{'' if count == 1 else 's'}"


def _parse(command: str, arguments: Sequence[str]) -> Namespace:
    # An exception instead of usage, tip and exit becomes a single line.
    parser = _parser(command, classifies=is_classification(arguments))
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(explain(str(error), arguments, list(parser.get_defaults().keys()))) from error


def _parser(command: str, *, classifies: bool) -> LightningArgumentParser:
    """A parser with all keys of ``fit``, so that both commands read the same configurations."""
    parser = LightningArgumentParser(
        prog=f"python -m bishare {command}",
        description="Print training examples as the model sees them.",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("-c", "--config", action="config", help="A configuration file, as for fit; several are merged.")
    parser.add_argument("--n", type=int, default=3, help="Examples to print.")
    for name in ("seed_everything", "ckpt_path", "weights_only", "default_callbacks"):
        parser.add_argument(f"--{name}", type=Any, help="As for fit; not used.")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(ClassificationModule if classifies else BiShareModule, "model")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.link_arguments("model.base", "data.init_args.base")
    if classifies:
        parser.link_arguments("data.init_args.task", "model.task")
    return parser


def _build(config: Namespace) -> PromptData | ClassificationData:
    """The data module alone."""
    parser = LightningArgumentParser(exit_on_error=False, default_env=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    try:
        data = parser.instantiate_classes(Namespace(data=config.data)).data  # type: ignore[no-untyped-call]
    except ValueError as error:
        # jsonargparse wraps the error of a class about its arguments into a ValueError.
        raise UserError(str(users_mistake(error) or error)) from error
    if not isinstance(data, PromptData | ClassificationData):
        raise UserError(f"data is {type(data).__name__}; preview shows {', '.join(bishare.data.__all__)}.")
    return data
