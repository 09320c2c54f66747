"""Rules for combining strategies, precisions and options, checked before anything is loaded.

Every refusal is a rule in ``RULES``. ``docs/compatibility.md`` is written from the same rules (``make docs``).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy

from bishare.deepspeed import BiShareDeepSpeed
from bishare.errors import UserError
from bishare.models.compiling import check_compiler

ONE_DEVICE, DDP, DEEPSPEED, LIGHTNING_DEEPSPEED = "one device", "ddp", "BiShareDeepSpeed", "deepspeed"


@dataclass(frozen=True, kw_only=True)
class Combination:
    """The settings of a run with rules between them."""

    strategy: str = ONE_DEVICE
    """``one device``, ``ddp``, ``BiShareDeepSpeed``, ``deepspeed`` for Lightning's own, or a further class name."""
    stage: int = 0
    """ZeRO stage; 0 without DeepSpeed."""
    precision: str = "32-true"
    """As in ``trainer.precision``."""
    base_dtype: str = "float32"
    """Type of the frozen weights: ``float32``, ``bfloat16`` or ``float16``."""
    clipping: str = "norm"
    """As in ``trainer.gradient_clip_algorithm``."""
    compile: bool = False
    """As in ``model.compile``."""
    classification: bool = False
    """Whether a classification head is trained."""

    @property
    def wanted(self) -> str:
        """The precision to keep both the type of the frozen weights and an fp32 adapter."""
        if self.strategy != DEEPSPEED or self.base_dtype == "float32":
            return "32-true"
        return "bf16-mixed"

    @property
    def casts(self) -> str:
        """The type of the frozen weights after a cast by DeepSpeed."""
        return "fp32, twice its size" if self.precision == "32-true" else "bf16"


class Rule(NamedTuple):
    """A refusal of settings."""

    refuses: Callable[[Combination], bool]
    message: str
    """The settings given and the settings to use instead; fields of the combination stand in braces."""


def _ours(run: Combination) -> bool:
    return run.strategy == DEEPSPEED


RULES = (
    Rule(
        lambda run: run.classification and run.stage == 3,
        # The weights arrive in pieces, so that the head's can't be made fp32 any more.
        "trainer.strategy is ZeRO-3 and cannot train a classification head; use stage 2 or ddp.",
    ),
    Rule(
        lambda run: run.strategy == LIGHTNING_DEEPSPEED,
        "trainer.strategy is {strategy}: the loss would be divided twice under accumulation, and shared parameters "
        "would stay partitioned; use {{class_path: bishare.deepspeed.BiShareDeepSpeed}}.",
    ),
    Rule(
        lambda run: run.strategy not in (ONE_DEVICE, DDP, DEEPSPEED),
        "trainer.strategy is {strategy} and cannot train parameters shared by many layers; use one device, ddp or "
        "{{class_path: bishare.deepspeed.BiShareDeepSpeed}}.",
    ),
    Rule(
        lambda run: run.compile and _ours(run),
        "model.compile is on, but is for one device or ddp; leave it out under DeepSpeed.",
    ),
    Rule(
        lambda run: run.precision in ("bf16-true", "16-true"),
        # The running means would be 16 bit too: small updates are rounded away.
        "trainer.precision is {precision}: the adapter would be 16 bit too and stop learning; use {wanted} (the frozen "
        "weights keep model.base_dtype, now {base_dtype}).",
    ),
    Rule(
        lambda run: _ours(run) and run.precision == "16-mixed",
        "trainer.precision is 16-mixed: the loss scale skips steps under DeepSpeed; use bf16-mixed with "
        "model.base_dtype bfloat16.",
    ),
    Rule(
        lambda run: _ours(run) and run.base_dtype == "float16",
        "model.base_dtype is float16 and does not train under DeepSpeed; use bfloat16.",
    ),
    Rule(
        lambda run: _ours(run) and run.precision != run.wanted,
        "trainer.precision is {precision}, and DeepSpeed casts a base of type {base_dtype} to {casts}; use {wanted}, "
        "or change model.base_dtype.",
    ),
    Rule(
        lambda run: _ours(run) and run.clipping == "value",
        "trainer.gradient_clip_algorithm is value, unknown to DeepSpeed; use norm.",
    ),
)
"""A run is compared with the rules in order, and the user reads the message of the first match."""


def rule_against(run: Combination) -> Rule | None:
    """The first rule to refuse the run, or None."""
    for rule in RULES:
        if rule.refuses(run):
            return rule
    return None


def check_combination(
    trainer: Trainer, *, base_dtype: str, compile: bool = False, classification: bool = False
) -> None:
    """Refuse a run whose settings would train something else than asked for, or break later on.

    Args:
        trainer: Gives strategy, precision and clipping.
        base_dtype: Type of the frozen weights.
        compile: Whether torch.compile is asked for.
        classification: Whether a classification head is trained.

    Raises:
        UserError: Names the setting and a setting to use instead.
    """
    strategy = trainer.strategy
    run = Combination(
        strategy=_name_of(strategy),
        stage=_stage_of(strategy),
        precision=str(trainer.precision),
        base_dtype=base_dtype,
        clipping="value" if trainer.gradient_clip_algorithm == "value" else "norm",
        compile=compile,
        classification=classification,
    )
    if rule := rule_against(run):
        raise UserError(rule.message.format(**asdict(run), wanted=run.wanted, casts=run.casts))
    if compile:
        check_compiler(strategy.root_device)


def _name_of(strategy: Strategy) -> str:
    if isinstance(strategy, BiShareDeepSpeed):
        return DEEPSPEED
    if isinstance(strategy, DeepSpeedStrategy):
        return LIGHTNING_DEEPSPEED
    if isinstance(strategy, SingleDeviceStrategy):
        return ONE_DEVICE
    return DDP if isinstance(strategy, DDPStrategy) else type(strategy).__name__


def _stage_of(strategy: Strategy) -> int:
    config = strategy.config if isinstance(strategy, DeepSpeedStrategy) else None
    if not isinstance(config, dict):
        return 0
    return int(config.get("zero_optimization", {}).get("stage", 0))
