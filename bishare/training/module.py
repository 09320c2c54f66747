"""The LightningModule: a frozen Hugging Face model with an adapter, the loss, the optimizer and checkpoints."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from bishare.adapters.base import Adapter, AdapterConfig
from bishare.adapters.registry import config_classes
from bishare.data.encoding import encode_prompts
from bishare.distributed.partitions import full_shape, whole_parameters
from bishare.errors import UserError
from bishare.models.activation_checkpointing import checkpoint_layers
from bishare.models.attach import NAME, adapter_of, attach
from bishare.models.compiling import compile_norms
from bishare.models.dtypes import Dtype, DtypeChoice, base_type, is_slow
from bishare.models.loading import load_base, load_tokenizer
from bishare.models.packed_attention import use_packed_attention
from bishare.training.answers import greedy_answers
from bishare.training.checkpoint_check import check_shapes
from bishare.training.compatibility import check_combination
from bishare.training.loss import TokenLoss, perplexity, token_loss
from bishare.training.optimization import adamw, parameter_groups, total_steps_of, warmup_and_decay
from bishare.training.resume import ExactResume
from bishare.training.update_guard import STEPS, UpdateGuard
from bishare.training.vocabulary_check import VocabularyCheck

config_classes()  # torch.load reads a checkpoint with a configuration of an imported class only

Batch = dict[str, Any]
PREFIX = f"model.{NAME}."
"""Prefix of the adapter's entries in the state dict."""


class BiShareModule(LightningModule):
    """Trains an adapter on a frozen causal language model.

    Args:
        base: Hub name, local folder, ``.gguf`` file, or ``package:NAME`` for a model inside an installed package.
        adapter: The method and its options.
        base_dtype: Type of the frozen weights; the adapter is always fp32. ``auto`` is bfloat16 on devices with
            bfloat16 products, else float32.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run Python code that comes with the base model.
        learning_rate: Peak of the schedule.
        lr_factors: Factors of the learning rate by parameter group (``intra.B``) or role (``B``, ``kernel``, ``gate``).
        weight_decay: AdamW's decoupled weight decay.
        warmup_steps: Optimizer steps of a rising rate, from a hundredth to the peak; below 1, a share of the run's
            steps.
        gradient_checkpointing: Recompute activations in the backward pass (non-re-entrant, for shared parameters).
        compile: Fuse the normalisation layers with torch.compile; takes up to a minute at the start.
        max_new_tokens: Length limit of the answers written by ``predict``.

    Logs:
        ``train/loss``: mean cross-entropy per label of the optimizer step, in nats.
        ``val/loss``, ``val/perplexity``, ``val/accuracy``: over all labels of the validation set.
    """

    classifies: ClassVar[bool] = False
    """Whether a classification head is trained beside the adapter."""

    def __init__(
        self,
        base: str,
        adapter: AdapterConfig,
        *,
        base_dtype: DtypeChoice = "bfloat16",
        revision: str | None = None,
        trust_remote_code: bool = False,
        learning_rate: float = 1e-4,
        lr_factors: dict[str, float] | None = None,
        weight_decay: float = 0.0,
        warmup_steps: int | float = 100,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__()
        if learning_rate <= 0:
            raise UserError(f"learning_rate is {learning_rate}; it must be positive.")
        if warmup_steps < 0 or (warmup_steps > 1 and warmup_steps != int(warmup_steps)):
            raise UserError(f"warmup_steps is {warmup_steps}; it must be a number of steps, or a share below 1.")
        self.save_hyperparameters(logger=False)
        self.base, self.adapter_config = base, adapter
        self.base_dtype, self.revision, self.trust_remote_code = base_dtype, revision, trust_remote_code
        self.learning_rate, self.lr_factors = learning_rate, lr_factors or {}
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps
        self.gradient_checkpointing, self.max_new_tokens = gradient_checkpointing, max_new_tokens
        self.compile_norms = compile  # Lightning's own compile is a method
        self.strict_loading = False  # checkpoints hold no base weights; on_load_checkpoint checks the adapter's
        self.val_loss, self.val_accuracy = MeanMetric(), MeanMetric()
        self.model: PreTrainedModel
        self._step_loss = torch.zeros(())  # sums over the micro-batches of the current optimizer step
        self._step_labels = torch.zeros((), dtype=torch.int64)
        self._guard: UpdateGuard | None = None
        self._first_step = 0

    # --- the model ---------------------------------------------------------------------------------------------

    @override
    def configure_callbacks(self) -> list[Callback]:
        # The first hook of a run, before data or weights are read.
        check_combination(
            self.trainer,
            base_dtype=self.weights_type,
            compile=self.compile_norms,
            classification=self.classifies,
        )
        if is_slow(self.weights_type, self.trainer.strategy.root_device.type):
            rank_zero_info(
                f"model.base_dtype is {self.base_dtype}, in which this processor multiplies many times slower than in "
                "float32; use auto or float32."
            )
        return [ExactResume(), VocabularyCheck()]

    @override
    def configure_model(self) -> None:
        if hasattr(self, "model"):
            return
        model = self.load_model()
        if self.compile_norms:
            compile_norms(model)
        self.adapt(model)
        if self.gradient_checkpointing:
            checkpoint_layers(model)
        self.model = model.train()  # from_pretrained gives it in evaluation mode, and Lightning keeps modes

    def load_model(self) -> PreTrainedModel:
        """The base model with weights."""
        model = load_base(
            self.base, dtype=self.weights_type, revision=self.revision, trust_remote_code=self.trust_remote_code
        )
        use_packed_attention(model)
        return model

    @property
    def weights_type(self) -> Dtype:
        """``base_dtype``, with ``auto`` decided by the trainer's device."""
        device_type = "cpu"
        if self._trainer is not None:
            device_type = self.trainer.strategy.root_device.type
        return base_type(self.base_dtype, device_type)

    def adapt(self, model: PreTrainedModel) -> None:
        """Freeze the model and attach the adapter."""
        with whole_parameters():
            attach(model, self.adapter_config)

    def head(self) -> Mapping[str, nn.Parameter]:
        """Parameters trained in full beside the adapter, by name in the model: none in a language model."""
        return {}

    @property
    def adapter(self) -> Adapter:
        """The adapter inside the base model."""
        return adapter_of(self.model)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the run's data, whose chat template may be the user's, or else of the base model."""
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(given := getattr(data, "tokenizer", None), PreTrainedTokenizerBase):
            return given
        return load_tokenizer(self.base, revision=self.revision, trust_remote_code=self.trust_remote_code)

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        groups = parameter_groups(
            self.adapter, self.head().values(), learning_rate=self.learning_rate, lr_factors=self.lr_factors
        )
        optimizer = adamw(groups, weight_decay=self.weight_decay)
        total_steps = total_steps_of(self.trainer)
        warmup_steps = int(self.warmup_steps)
        if 0 < self.warmup_steps < 1:
            warmup_steps = round(self.warmup_steps * total_steps)
        schedule = warmup_and_decay(optimizer, warmup_steps=warmup_steps, total_steps=total_steps)
        settings: LRSchedulerConfigType = {"scheduler": schedule, "interval": "step", "name": "learning_rate"}
        return {"optimizer": optimizer, "lr_scheduler": settings}  # the monitor logs the rate under the name

    # --- training ----------------------------------------------------------------------------------------------

    @override
    def on_train_start(self) -> None:
        self.adapter.refresh()  # not earlier: DeepSpeed restores a checkpoint after on_fit_start
        self._first_step = self.trainer.global_step
        if self._first_step == 0 and not self.adapter.starts_as_noop:
            rank_zero_info(f"A fresh {self.adapter_config.method} adapter already changes the base model's answers.")
        self._guard = UpdateGuard(self.adapter)

    def loss(self, batch: Batch) -> TokenLoss:
        """The loss of a micro-batch, summed over the labels."""
        return token_loss(self.model, batch)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self._step_loss = self._step_loss.to(loss.sum.device) + loss.sum.detach()
        self._step_labels = self._step_labels.to(loss.sum.device) + loss.num_labels
        accumulation, world_size = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if (batch_idx + 1) % accumulation == 0 or self.trainer.is_last_batch:
            self._finish_step()
        if (total := batch.get("num_step_labels")) is None:
            # A loader without knowledge of steps: the mean over this micro-batch, as Lightning users expect.
            if batch_idx == 0 and self.current_epoch == 0:
                rank_zero_info("Batches carry no num_step_labels: the loss is a mean of micro-batch means.")
            return loss.mean() + self.adapter.zero_of_dead()
        # Lightning divides by the accumulation and the strategy averages over ranks; the factor undoes both.
        return loss.sum * (accumulation * world_size / int(total)) + self.adapter.zero_of_dead()

    def _finish_step(self) -> None:
        """Log the loss of the optimizer step completed by the current micro-batch; stop if the loss is not finite."""
        sums = torch.stack([self._step_loss.double(), self._step_labels.double()])
        total, labels = self.trainer.strategy.reduce(sums, reduce_op="sum")
        mean = total / labels
        self._step_loss, self._step_labels = torch.zeros_like(self._step_loss), torch.zeros_like(self._step_labels)
        if not torch.isfinite(mean):
            raise UserError(
                f"train/loss is {mean.item()} at optimizer step {self.trainer.global_step + 1}; training was stopped. "
                f"Lower learning_rate ({self.learning_rate:g}), or clip gradients with trainer.gradient_clip_val."
            )
        self.log("train/loss", mean.float(), prog_bar=True)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self._guard is not None and self.trainer.global_step - self._first_step >= STEPS:
            guard, self._guard = self._guard, None
            guard.check(self.adapter)

    # --- validation and prediction -----------------------------------------------------------------------------

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.val_loss.update(loss.mean(), weight=loss.num_labels)
        self.val_accuracy.update(loss.num_correct / loss.num_labels, weight=loss.num_labels)

    @override
    def on_validation_epoch_end(self) -> None:
        mean = self.val_loss.compute()
        self.log("val/loss", mean, prog_bar=True)
        self.log("val/perplexity", perplexity(mean))
        self.log("val/accuracy", self.val_accuracy.compute())
        self.val_loss.reset()
        self.val_accuracy.reset()

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    @override
    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Answers to a batch of prompts: a ``{"prompt", "answer", "reference"}`` for each prompt."""
        answers = self._answers(batch, self.max_new_tokens)
        rows = zip(batch["prompt"], answers, batch["reference"], strict=True)
        return [{"prompt": prompt, "answer": answer, "reference": reference} for prompt, answer, reference in rows]

    def generate(self, prompts: list[str], max_new_tokens: int = 64) -> list[str]:
        """Greedy answers to ``prompts`` (rendered as in training), each cut at the end of text."""
        return self._answers(encode_prompts(self.tokenizer, prompts), max_new_tokens)

    def _answers(self, tokens: Mapping[str, Tensor], max_new_tokens: int) -> list[str]:
        """Answers to left-padded prompts [b, n]."""
        return greedy_answers(
            self.model,
            self.tokenizer,
            tokens["input_ids"],
            tokens["attention_mask"],
            max_new_tokens=max_new_tokens,
        )

    # --- checkpoints -------------------------------------------------------------------------------------------

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The frozen base is read from its own files again: 26 GB at 13B parameters, all unchanged.
        head = self._head_names()
        state = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {k: v for k, v in state if k.startswith(PREFIX) or k in head}
        checkpoint["bishare"] = {"base": self.base, "method": self.adapter_config.method}

    def _head_names(self) -> dict[str, nn.Parameter]:
        return {f"model.{name}": parameter for name, parameter in self.head().items()}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = {k: v.shape for k, v in self.state_dict().items() if k.startswith(PREFIX)}
        mine |= {PREFIX + k: full_shape(p) for k, p in self.adapter.named_parameters()}
        mine |= {k: full_shape(p) for k, p in self._head_names().items()}
        check_shapes(checkpoint, mine, prefix=PREFIX)
