"""Classification through the command line and from Python: a tiny BERT learns whether a sentence has an ``a``."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification

import callbacks
from bishare import load_adapter
from bishare.cli import main
from bishare.commands.config.settings import is_classification, read_settings
from bishare.commands.fit.command import BiShareCLI
from bishare.commands.plan.plan import make_plan
from bishare.errors import UserError
from bishare.models.architectures import build_adapter, build_on_meta, find_architecture
from tests.glue_base import save_base, save_task
from tests.places import PROJECT
from tests.processes import Group

CONFIGS = PROJECT / "configs"

Fit = Callable[..., int]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    """Twelve epochs of four optimizer steps; two merges in each kind of weight."""
    save_task(tmp_path / "glue")
    merging = {"start": 2, "interval": 2, "num_merges": 2}
    content = {
        "model": {
            "base": str(base),
            "base_dtype": "float32",
            "learning_rate": 0.02,
            "warmup_steps": 0.1,
            "adapter": {"class_path": "bishare.ASLoRAConfig", "init_args": {"targets": ["q", "v"], "r": 4}},
        },
        "data": {
            "class_path": "bishare.data.ClassificationData",
            "init_args": {"task": "sst2", "path": str(tmp_path / "glue"), "batch_size": 16},
        },
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "run"),
            "max_epochs": 12,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "callbacks.AdaptiveMerging", "init_args": merging},
                {"class_path": "callbacks.AdapterCheckpoint"},
                {"class_path": "callbacks.ParameterCount"},
                {"class_path": "callbacks.PredictionWriter"},
            ],
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def values(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def curve(folder: Path, tag: str) -> list[float]:
    """Values of a scalar in TensorBoard's events."""
    return [event.value for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, msg=name, **tolerance)


def test_run_learns_merges_validates_and_predicts(
    config: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "head, trained in full, apart from these" in out
    merges = [json.loads(line) for line in (tmp_path / "run" / "merges.jsonl").read_text().splitlines()]
    assert [merge["step"] for merge in merges] == [4, 4, 6, 6]

    saved = str(tmp_path / "run" / "config.yaml")
    assert main(["validate", "--config", saved, "--ckpt_path", "last"]) == 0
    assert "val/score" in capsys.readouterr().out
    assert main(["predict", "--config", str(config), "--ckpt_path", "last"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    right = sum(row["answer"] == row["reference"] for row in rows)
    assert right >= 20, "it has learned to look for an a"

    # The adapter folder alone gives the same model, head and merges included.
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2).eval()
    load_adapter(model, tmp_path / "run" / "adapter")
    tokenizer = BiShareCLI("fit", ["--config", str(config)], run=False).model.tokenizer
    with torch.no_grad():
        found = [model(**tokenizer(row["prompt"], return_tensors="pt")).logits.argmax().item() for row in rows]
    assert [str(label) for label in found] == [row["answer"] for row in rows]


def test_resumed_run_ends_as_the_unbroken_one(config: Path, tmp_path: Path) -> None:
    every = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {every_n_train_steps: 5, "
    options = ["--config", str(config), "--trainer.max_steps", "7"]
    whole = ["--trainer.callbacks+", every + "save_top_k: -1, filename: five, save_last: true}}"]
    assert main(["fit", *options, *whole]) == 0
    middle = tmp_path / "run" / "checkpoints" / "five.ckpt"
    kept = torch.load(middle, weights_only=True)
    assert kept["global_step"] == 5
    names = set(kept["state_dict"])
    assert {"model.classifier.weight", "model.bert.pooler.dense.weight"} <= names
    assert not any("encoder" in name and "bishare" not in name for name in names), "the frozen base is not kept"

    again = ["--trainer.default_root_dir", str(tmp_path / "again"), "--ckpt_path", str(middle)]
    assert main(["fit", *options, *again]) == 0
    assert_equal(values(tmp_path / "run"), values(tmp_path / "again"), rtol=0, atol=0)


@pytest.fixture
def two(config: Path, tmp_path: Path) -> list[str]:
    """The command of seven steps in two processes; this process has taken the same steps alone."""
    options = ["fit", "--config", str(config), "--trainer.max_steps", "7"]
    assert main(options) == 0
    return [*options, "--trainer.devices", "2", "--trainer.default_root_dir", str(tmp_path / "two")]


def test_two_started_processes_train_as_one(two: list[str], tmp_path: Path) -> None:
    """Lightning starts the second process itself, as for a user's command."""
    command = [sys.executable, "-m", "bishare", *two, "--trainer.strategy", "ddp"]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, timeout=300)
    assert_equal(values(tmp_path / "run"), values(tmp_path / "two"), rtol=1e-3, atol=1e-4)
    norms = curve(tmp_path / "run", "train/grad_norm")
    assert len(norms) == 7
    assert curve(tmp_path / "two", "train/grad_norm") == pytest.approx(norms, rel=1e-2)


def test_two_zero_processes_train_as_one(two: list[str], tmp_path: Path) -> None:
    strategy = "{class_path: bishare.deepspeed.BiShareDeepSpeed, init_args: {stage: 2}}"
    group = Group(main, [*two, "--trainer.strategy", strategy], folder=tmp_path / "group")
    assert group.results(seconds=300) == [0, 0]
    assert_equal(values(tmp_path / "run"), values(tmp_path / "two"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.task", "mpc"], "data.task is mpc; it must be cola, sst2"),
        (["--data.task", "rte"], "has no rte_validation.jsonl"),
        (["--data.path", "nowhere.jsonl"], "give the folder that holds sst2_train.jsonl"),
        (["--model.lr_factors", "{hed: 2}"], "lr_factors names 'hed'; this adapter has A, B, head"),
        (["--model.warmup_steps", "2.5"], "warmup_steps is 2.5; it must be a number of steps, or a share below 1"),
        (
            ["--trainer.strategy", "{class_path: bishare.deepspeed.BiShareDeepSpeed, init_args: {stage: 3}}"],
            "ZeRO-3 and cannot train a classification head; use stage 2 or ddp",
        ),
        (
            ["--trainer.callbacks+", "{class_path: callbacks.SampleAnswers, init_args: {questions: [Why?]}}"],
            "SampleAnswers asks in the words of the data module's render_prompt(), and this data has none",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    config: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config), *options]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line


def test_row_without_a_label_ends_in_one_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "glue" / "sst2_train.jsonl"
    path.write_text(path.read_text() + '{"sentence1": "a b"}\n')
    assert main(["fit", "--config", str(config)]) == 1
    assert f"{path}, row 65: the field label is missing" in capsys.readouterr().err.splitlines()[-1]


def test_adapter_with_other_classes_is_refused(config: Path, base: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "1"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with pytest.raises(UserError, match=r"classifier.bias is \[2\] there and \[3\] here"):
        load_adapter(model, tmp_path / "run" / "adapter")
    assert not hasattr(model, "bishare")


# --- configurations --------------------------------------------------------------------------------------------------


def test_data_decide_which_module_is_built(config: Path) -> None:
    assert is_classification(["--config", str(config)])
    assert is_classification(["--data", str(CONFIGS / "data" / "glue.yaml")])
    assert not is_classification(["--config", str(config), "--data", "bishare.data.PyDocsData"])
    assert not is_classification(["--config", "nowhere.yaml"])


def test_roberta_merges_at_the_papers_steps_on_mrpc() -> None:
    path = str(CONFIGS / "aslora_roberta_mrpc.yaml")
    cli = BiShareCLI("fit", ["--config", path, "--trainer.accelerator", "cpu"], run=False)
    model, trainer, data = cli.model, cli.trainer, cli.datamodule
    assert (model.learning_rate, model.weight_decay, model.warmup_steps) == (4e-4, 0.1, 0.06)
    assert (data.task, data.batch_size, trainer.max_epochs) == ("mrpc", 16, 30)
    assert (model.adapter_config.r, model.adapter_config.alpha) == (8, 16)
    (merging,) = (c for c in trainer.callbacks if isinstance(c, callbacks.AdaptiveMerging))
    settings = read_settings(["--config", path])
    architecture = find_architecture(settings.model.base, files=settings.files)
    adapter = build_adapter(build_on_meta(architecture, num_classes=2), model.adapter_config)
    events = merging.events_of(adapter)
    assert set(events) == {"local.q", "local.v"}
    for steps in events.values():
        assert sorted(steps) == [560, 800, 1040, 1280, 1520, 1760, 2000]


def test_a_plan_counts_the_head_apart(config: Path, tmp_path: Path) -> None:
    plan = make_plan(read_settings(["--config", str(config)]))
    assert plan.parameters.num_live == 2 * 4 * 16 + 8 * 4 * 16
    assert plan.merged is not None
    assert plan.merged.num_live == 2 * 4 * 16 + 4 * 4 * 16
    assert plan.parameters.head == 16 * 16 + 16 + 2 * 16 + 2
    assert plan.steps_per_epoch == 4
    assert plan.parameters.base == sum(
        p.numel() for n, p in build_on_meta_of(config).named_parameters() if "pooler" not in n and "classifier" not in n
    )


def build_on_meta_of(config: Path) -> torch.nn.Module:
    settings = read_settings(["--config", str(config)])
    return build_on_meta(find_architecture(settings.model.base, files=settings.files), num_classes=2)


def test_a_preview_shows_text_and_label(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "--config", str(config), "--n", "2"]) == 0
    out = capsys.readouterr().out
    assert "Example 2: " in out
    assert "label 1" in out
    assert "labels" in out
    assert "0: 32, 1: 32" in out
