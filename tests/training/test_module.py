"""The LightningModule, trained for a few steps on a tiny Llama from a local folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from bishare.adapters.base import AdapterConfig
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError
from bishare.models.factor_assembly import FactorAssembly
from bishare.training.module import BiShareModule
from tests.compiler import needs_compiler


class Packs(Dataset[dict[str, Any]]):
    """``num`` optimizer steps of ``micro`` unequal micro-batches each, cut from the same eight sequences a step."""

    def __init__(self, *, num: int = 6, micro: int = 1, totals: bool = True) -> None:
        self.num, self.micro, self.totals = num, micro, totals

    def __len__(self) -> int:
        return self.num * self.micro

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i >= len(self):
            raise IndexError(i)
        generator = torch.Generator().manual_seed(i // self.micro)
        ids = torch.randint(3, 64, (8, 12), generator=generator)
        labels = torch.where(torch.rand(8, 12, generator=generator) < 0.5, -100, ids)
        cuts = {1: [8], 2: [3, 5], 4: [1, 3, 2, 2]}[self.micro]
        start = sum(cuts[: i % self.micro])
        rows = slice(start, start + cuts[i % self.micro])
        batch = {"input_ids": ids[rows], "labels": labels[rows], "attention_mask": torch.ones_like(ids[rows])}
        return batch | ({"num_step_labels": int((labels[:, 1:] != -100).sum())} if self.totals else {})


def loader(**options: Any) -> DataLoader[dict[str, Any]]:
    return DataLoader(Packs(**options), batch_size=None)


@pytest.fixture
def base(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> str:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Callable[..., lightning.Trainer]]:
    def build(**options: Any) -> lightning.Trainer:
        defaults = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
        checkpoint = {"enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": tmp_path}
        return lightning.Trainer(**(defaults | checkpoint | options))

    return build


def module(base: str, config: AdapterConfig | None = None, **options: Any) -> BiShareModule:
    lightning.seed_everything(0, verbose=False)
    defaults = {"base_dtype": "float32", "learning_rate": 1e-2, "warmup_steps": 1}
    return BiShareModule(base, config or BiShareConfig(size=16), **(defaults | options))


def values(model: BiShareModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.adapter.named_parameters()}


def test_step_does_not_depend_on_its_split(base, trainer) -> None:
    results = {}
    for micro in (1, 2, 4):
        model = module(base)
        trainer(accumulate_grad_batches=micro).fit(model, loader(micro=micro))
        results[micro] = values(model)
        assert model.trainer.global_step == 6
    for micro in (2, 4):
        for name, value in results[1].items():
            torch.testing.assert_close(results[micro][name], value, rtol=1e-4, atol=1e-6)


def test_logged_loss_is_mean_over_step_labels(base, trainer) -> None:
    model = module(base, LoRAConfig(r=2))
    trainer(max_steps=1, accumulate_grad_batches=4).fit(model, loader(micro=4))
    model.configure_model()
    whole = Packs(micro=1)[0]
    fresh = module(base, LoRAConfig(r=2))
    fresh.configure_model()  # starts as a no-op, so the first step's loss is the base model's
    logits = fresh.model(whole["input_ids"]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole["labels"][:, 1:].flatten())
    torch.testing.assert_close(model.trainer.callback_metrics["train/loss"], expected.detach())


def test_plain_loader_trains_with_lightnings_means(base, trainer) -> None:
    model = module(base)
    trainer(accumulate_grad_batches=2).fit(model, loader(micro=2, totals=False))
    assert model.trainer.global_step == 6
    assert torch.isfinite(model.trainer.callback_metrics["train/loss"])


def test_validation_reports_loss_per_label(base, trainer) -> None:
    reports = []
    for micro in (1, 4):
        model = module(base)
        reports.append(trainer().validate(model, loader(num=2, micro=micro), verbose=False)[0])
    assert reports[0].keys() == {"val/loss", "val/perplexity", "val/accuracy"}
    assert reports[0] == pytest.approx(reports[1], rel=1e-5)
    assert reports[0]["val/perplexity"] == pytest.approx(torch.tensor(reports[0]["val/loss"]).exp().item(), rel=1e-5)


def test_base_stays_bitwise_while_the_adapter_trains(base, trainer, tiny_model) -> None:
    model = module(base)
    trainer().fit(model, loader())
    after = model.model.state_dict()
    for name, before in tiny_model("llama").state_dict().items():
        assert torch.equal(after[name], before), name
    assert all(p.requires_grad == name.startswith("bishare.") for name, p in model.model.named_parameters())


def test_gradient_checkpointing_trains_the_same(base, trainer, monkeypatch) -> None:
    # Both runs assemble layer by layer, or shared factors' gradients are added up in two orders.
    monkeypatch.setattr(FactorAssembly, "assemble", lambda *_: None)
    results = []
    for checkpointing in (False, True):
        model = module(base, BiShareConfig(size=16, dropout=0.2), gradient_checkpointing=checkpointing)
        trainer().fit(model, loader())
        assert model.model.is_gradient_checkpointing == checkpointing
        results.append(values(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-7)


@needs_compiler
def test_compiled_model_trains_and_saves_the_same(base, trainer, tmp_path) -> None:
    results = []
    for compiled in (False, True):
        model, run = module(base, compile=compiled), trainer(max_steps=2)
        run.fit(model, loader())
        norm = model.model.model.norm
        assert (norm._compiled_call_impl is not None) == compiled
        run.save_checkpoint(tmp_path / "last.ckpt")
        results.append((values(model), set(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-6)
    assert results[1][1] == results[0][1]


def test_adapter_is_fp32_over_a_bf16_base(base, trainer) -> None:
    model = module(base, base_dtype="bfloat16")
    trainer(max_steps=1).fit(model, loader())
    dtypes = {name.startswith("bishare."): p.dtype for name, p in model.model.named_parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}
    state = next(iter(model.trainer.optimizers[0].state.values()))
    assert state["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize(("asked", "loaded", "warned"), [("auto", "float32", False), ("bfloat16", "bfloat16", True)])
def test_slow_bf16_warns_and_auto_is_fp32(
    asked: str, loaded: str, warned: bool, base, trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bishare.models.dtypes.is_slow", lambda dtype, device: (dtype, device) == ("bfloat16", "cpu"))
    monkeypatch.setattr("bishare.training.module.is_slow", lambda dtype, device: (dtype, device) == ("bfloat16", "cpu"))
    said: list[str] = []
    monkeypatch.setattr("bishare.training.module.rank_zero_info", said.append)
    model = module(base, base_dtype=asked)
    trainer(max_steps=1).fit(model, loader())
    assert model.model.dtype == getattr(torch, loaded)
    assert any("use auto or float32" in line for line in said) == warned


def test_checkpoint_holds_the_adapter_alone(base, trainer, tmp_path) -> None:
    model = module(base)
    run = trainer()
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"model.bishare.{name}" for name in model.adapter.state_dict()}
    num_bytes = 4 * sum(p.numel() for p in model.adapter.parameters())
    assert (tmp_path / "last.ckpt").stat().st_size <= 4 * num_bytes + 2**20


def test_run_goes_on_from_its_checkpoint(base, trainer, tmp_path, monkeypatch) -> None:
    whole = module(base)
    trainer(max_epochs=2).fit(whole, loader())
    half, run = module(base), trainer(max_epochs=2, max_steps=6)
    # The schedule must be that of the whole run, so the first half is stopped, not planned shorter.
    with monkeypatch.context() as patch:
        patch.setattr("bishare.training.module.total_steps_of", lambda trainer: 12)
        run.fit(half, loader())
    run.save_checkpoint(tmp_path / "half.ckpt")
    rest = module(base)
    trainer(max_epochs=2).fit(rest, loader(), ckpt_path=tmp_path / "half.ckpt")
    for name, value in values(whole).items():
        assert torch.equal(values(rest)[name], value), name


def test_checkpoint_of_another_adapter_is_refused(base, trainer, tmp_path) -> None:
    run = trainer(max_steps=1)
    run.fit(module(base, LoRAConfig(r=2)), loader())
    run.save_checkpoint(tmp_path / "lora.ckpt")
    with pytest.raises(UserError, match=r"checkpoint \(lora on .*\) does not fit this run: .* has shape"):
        trainer().fit(module(base), loader(), ckpt_path=tmp_path / "lora.ckpt")


def test_infinite_loss_stops_the_run(base, trainer) -> None:
    model = module(base)
    model.configure_model()
    with torch.no_grad():
        model.adapter.get_parameter("inter.A.all").fill_(float("nan"))
    with pytest.raises(UserError, match="train/loss is nan at optimizer step 1; training was stopped"):
        trainer().fit(model, loader())


def test_untrained_group_stops_the_run(base, trainer) -> None:
    model = module(base, lr_factors={"intra.kernel": 0.0})
    with pytest.raises(UserError, match=r"parameters intra\.kernel have not changed"):
        trainer().fit(model, loader())
    assert model.trainer.global_step == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"learning_rate": 0.0}, "learning_rate is 0.0"), ({"warmup_steps": -1}, "warmup_steps is -1")],
)
def test_wrong_options_are_refused(base, options, message) -> None:
    with pytest.raises(UserError, match=message):
        module(base, **options)
