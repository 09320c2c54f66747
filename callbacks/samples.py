"""Asks the same questions before and after training."""

from collections.abc import Iterator
from contextlib import contextmanager

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from rich.markup import escape
from rich.padding import Padding
from torch import nn
from typing_extensions import override

from bishare.errors import UserError

from .run import tensorboards


class SampleAnswers(Callback):
    """Prints the model's answers to a few questions at the start and at the end of training.

    Answers are decoded greedily from the data module's own prompt. Training is not affected: modes and random states
    are restored, and no gradient is touched.

    Args:
        questions: The questions, as instructions.
        max_new_tokens: Longest answer, in tokens.

    Logs:
        ``answers/<i>``: question and answer as text.

    Raises:
        UserError: There are no questions, ``max_new_tokens`` is below 1, or the data module cannot build a prompt.
    """

    def __init__(self, questions: list[str], max_new_tokens: int = 64) -> None:
        if not questions:
            raise UserError("SampleAnswers has no questions; give at least one or leave the callback out.")
        if max_new_tokens < 1:
            raise UserError(f"SampleAnswers: max_new_tokens is {max_new_tokens}; an answer needs at least 1 token.")
        self.questions = questions
        self.max_new_tokens = max_new_tokens

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # Before the base model is loaded, which may take minutes.
        if not hasattr(trainer.datamodule, "render_prompt"):  # type: ignore[attr-defined]  # set in Trainer.fit
            raise UserError(
                "SampleAnswers asks in the words of the data module's render_prompt(), and this data has none; "
                "add the method or leave the callback out."
            )
        if not callable(getattr(pl_module, "generate", None)):
            raise UserError(f"SampleAnswers needs a generate() method, and {type(pl_module).__name__} has none.")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask(trainer, pl_module)

    def _ask(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate on every rank, since gathering weights under ZeRO-3 is a collective; print on rank zero."""
        prompts = [trainer.datamodule.render_prompt(question) for question in self.questions]  # type: ignore[attr-defined]
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            answers = pl_module.generate(prompts, max_new_tokens=self.max_new_tokens)  # type: ignore[operator]
        self._show(trainer, answers)

    @rank_zero_only
    def _show(self, trainer: Trainer, answers: list[str]) -> None:
        step = trainer.global_step
        when = f"at step {step:,}" if step else "before training"
        console = rich.get_console()
        console.print(f"[bold]Answers {when}[/bold]")
        for question, answer in zip(self.questions, answers, strict=True):
            console.print(Padding(f"[cyan]{escape(question)}[/cyan]", (0, 0, 0, 2), expand=False))
            console.print(Padding(escape(answer.strip()) or "[dim](nothing)[/dim]", (0, 0, 0, 4), expand=False))
        for tensorboard in tensorboards(trainer):
            for i, (question, answer) in enumerate(zip(self.questions, answers, strict=True)):
                tensorboard.add_text(f"answers/{i}", f"**{question}**\n\n{answer.strip()}", step)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate a module during training, without gradients; restore random states and the mode of every submodule."""
    # By submodule: a module in training may have parts in evaluation mode.
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with isolate_rng(), torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training
