"""Which strategies, precisions and compilers go together, checked before anything is loaded."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy

from bishare.deepspeed import BiShareDeepSpeed
from bishare.errors import UserError
from bishare.models.compiling import check_compiler


def check_combination(trainer: Trainer, *, base_dtype: str, compile: bool = False) -> None:
    """Refuse what would train something else than what was asked for, or break later on.

    Args:
        trainer: Its strategy, precision and clipping are looked at.
        base_dtype: Type of the frozen weights.
        compile: Whether torch.compile is asked for.

    Raises:
        UserError: Names the setting and what to use instead.
    """
    strategy, precision = trainer.strategy, str(trainer.precision)
    _check_strategy(strategy)
    if compile:
        if isinstance(strategy, BiShareDeepSpeed):
            raise UserError("model.compile is on, which is for one device or ddp; leave it out under DeepSpeed.")
        check_compiler(strategy.root_device)
    if precision in ("bf16-true", "16-true"):
        # The adapter and its running means would be 16 bit too: small updates are rounded away.
        instead = _precision_for(base_dtype) if isinstance(strategy, BiShareDeepSpeed) else "32-true"
        raise UserError(
            f"trainer.precision is {precision}, which makes the adapter 16 bit too and stops it from learning; use "
            f"{instead} (the frozen weights have model.base_dtype, now {base_dtype}, all the same)."
        )
    if not isinstance(strategy, BiShareDeepSpeed):
        return
    if precision == "16-mixed":
        raise UserError(
            "trainer.precision is 16-mixed, whose loss scale skips steps under DeepSpeed; use bf16-mixed with "
            "model.base_dtype bfloat16."
        )
    if precision != (wanted := _precision_for(base_dtype)):
        casts = "fp32, twice its size" if precision == "32-true" else "bf16"
        raise UserError(
            f"trainer.precision is {precision}, with which DeepSpeed casts a base of type {base_dtype} to {casts}; "
            f"use {wanted} with it, or another model.base_dtype."
        )
    if trainer.gradient_clip_algorithm == "value":
        raise UserError("trainer.gradient_clip_algorithm is value, which DeepSpeed has not; use norm.")


def _precision_for(base_dtype: str) -> str:
    """The one precision under which DeepSpeed keeps the type of the base and fp32 masters of the adapter."""
    if base_dtype == "float16":
        raise UserError("model.base_dtype is float16, which does not train under DeepSpeed; use bfloat16.")
    return "32-true" if base_dtype == "float32" else "bf16-mixed"


def _check_strategy(strategy: Strategy) -> None:
    if isinstance(strategy, BiShareDeepSpeed | SingleDeviceStrategy):
        return
    if isinstance(strategy, DeepSpeedStrategy):
        raise UserError(
            f"trainer.strategy is {strategy.strategy_name}, which divides the loss twice under accumulation and "
            "leaves shared parameters partitioned; use {class_path: bishare.deepspeed.BiShareDeepSpeed}."
        )
    if not isinstance(strategy, DDPStrategy):
        raise UserError(
            f"trainer.strategy is {type(strategy).__name__}, which cannot train parameters shared by many layers; "
            "use one device, ddp or {class_path: bishare.deepspeed.BiShareDeepSpeed}."
        )
