"""What is refused before a model is loaded, and what is not."""

import shutil
from pathlib import Path
from typing import Any

import lightning
import pytest
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy

from bishare.adapters.bishare import BiShareConfig
from bishare.deepspeed import BiShareDeepSpeed
from bishare.errors import UserError
from bishare.training.compatibility import check_combination
from bishare.training.module import BiShareModule


def trainer(**options: Any) -> lightning.Trainer:
    return lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


@pytest.mark.parametrize(
    ("precision", "base_dtype", "message"),
    [
        ("32-true", "bfloat16", "casts a base of type bfloat16 to fp32, twice its size; use bf16-mixed"),
        ("bf16-mixed", "float32", "casts a base of type float32 to bf16; use 32-true"),
        ("bf16-true", "bfloat16", "use bf16-mixed"),
        ("bf16-true", "float32", "use 32-true"),
        ("16-true", "bfloat16", "use bf16-mixed"),
        ("16-mixed", "bfloat16", "use bf16-mixed"),
        ("32-true", "float16", "use bfloat16"),
        ("bf16-mixed", "bfloat16", None),
        ("32-true", "float32", None),
    ],
)
def test_deepspeed_takes_one_precision_per_base_type(precision: str, base_dtype: str, message: str | None) -> None:
    asked = trainer(strategy=BiShareDeepSpeed(stage=3), precision=precision, devices=2)
    if message is None:
        check_combination(asked, base_dtype=base_dtype)
        return
    with pytest.raises(UserError, match=message):
        check_combination(asked, base_dtype=base_dtype)


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_one_process_and_ddp_keep_fp32_adapters(strategy: str) -> None:
    devices = 1 if strategy == "auto" else 2
    for precision in ("32-true", "bf16-mixed"):
        check_combination(trainer(strategy=strategy, precision=precision, devices=devices), base_dtype="bfloat16")
    with pytest.raises(UserError, match=r"bf16-true.*use 32-true"):
        check_combination(trainer(strategy=strategy, precision="bf16-true", devices=devices), base_dtype="bfloat16")


def test_clipping_by_value_is_refused_under_deepspeed() -> None:
    asked = trainer(strategy=BiShareDeepSpeed(), devices=2, gradient_clip_val=1.0, gradient_clip_algorithm="value")
    with pytest.raises(UserError, match="use norm"):
        check_combination(asked, base_dtype="float32")


def test_lightnings_deepspeed_and_sharding_are_refused() -> None:
    with pytest.raises(UserError, match=r"use .*BiShareDeepSpeed"):
        check_combination(trainer(strategy=DeepSpeedStrategy(stage=2), devices=2), base_dtype="float32")
    with pytest.raises(UserError, match="ModelParallelStrategy"):
        check_combination(trainer(strategy=ModelParallelStrategy(), devices=2), base_dtype="float32")


def test_stages_are_1_to_3() -> None:
    with pytest.raises(UserError, match="stage is 4"):
        BiShareDeepSpeed(stage=4)  # type: ignore[arg-type]


def test_run_is_refused_before_finding_its_base(tmp_path: Path) -> None:
    module = BiShareModule(str(tmp_path / "nowhere"), BiShareConfig())
    with pytest.raises(UserError, match="bf16-true"):
        trainer(precision="bf16-true", max_steps=1).fit(module)


def test_compiling_needs_a_compiler_and_no_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    check_combination(trainer(), base_dtype="float32")
    with pytest.raises(UserError, match=r"model\.compile is on, but there is no C\+\+ compiler g"):
        check_combination(trainer(), base_dtype="float32", compile=True)
    with pytest.raises(UserError, match=r"model\.compile is on, .* leave it out under DeepSpeed"):
        check_combination(trainer(strategy=BiShareDeepSpeed(stage=2), devices=2), base_dtype="float32", compile=True)
