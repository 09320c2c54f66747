from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bishare.adapters.bishare import BiShareConfig
from bishare.commands.evaluate import harness
from bishare.commands.evaluate.catalog import SUITES
from bishare.commands.evaluate.harness import HubTasks, run_suite
from bishare.errors import UserError
from bishare.models.attach import attach
from bishare.models.loading import load_base, load_tokenizer
from tests.randomised import randomise
from tests.tiny_base import save_tiny_base

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A tiny base model with a random adapter."""
    folder = str(save_tiny_base(tmp_path / "base"))
    model = load_base(folder, dtype="float32")
    randomise(attach(model, BiShareConfig(r_local=1, size=8)))
    return model, load_tokenizer(folder)


def run(base: Base, suite: str, rows: Path, **options: Any) -> dict[str, Any]:
    return run_suite(*base, SUITES[suite], data=str(rows), **({"shots": 0, "limit": None, "batch_size": 3} | options))


def answers(results: dict[str, Any]) -> dict[tuple[str, int], list[Any]]:
    return {
        (task, sample["doc_id"]): sample["filtered_resps"]
        for task, samples in results["samples"].items()
        for sample in samples
    }


@pytest.mark.parametrize(("suite", "shots"), [("commonsense", 0), ("mmlu", 2)])
def test_packs_give_the_harness_log_likelihoods(
    base: Base, rows_folder: Path, monkeypatch: pytest.MonkeyPatch, suite: str, shots: int
) -> None:
    limit = 1 if suite == "mmlu" else None
    packed = run(base, suite, rows_folder, shots=shots, limit=limit)
    monkeypatch.setattr(harness, "PackedLM", HFLM)
    plain = run(base, suite, rows_folder, shots=shots, limit=limit)

    ours, theirs = answers(packed), answers(plain)
    assert ours.keys() == theirs.keys()
    assert len(ours) == (57 if suite == "mmlu" else 32)
    for question, choices in theirs.items():
        assert [value for value, _ in ours[question]] == pytest.approx([value for value, _ in choices], abs=1e-4)
        assert [greedy for _, greedy in ours[question]] == [greedy for _, greedy in choices]
    assert packed["results"] == plain["results"]


def test_one_pass_reads_choices_and_shared_prompts(base: Base, rows_folder: Path) -> None:
    read: list[dict[str, Any]] = []
    model, _ = base
    model.base_model.register_forward_hook(lambda _, args, kwargs, out: read.append(kwargs), with_kwargs=True)
    results = run(base, "mmlu", rows_folder, limit=1)
    prompts = [sample["arguments"][0][0] for samples in results["samples"].values() for sample in samples]
    # head_of() runs two tokens to see whether the head is a plain one
    packs = [kwargs for kwargs in read if "documents" in kwargs]
    assert sum(len(kwargs["documents"].lengths) for kwargs in packs) == len(prompts)
    num_read = sum(kwargs["input_ids"].numel() for kwargs in packs)
    num_shared = sum(sum(kwargs["documents"].shared) for kwargs in packs)
    # The space before the letter is a token of its own here, which all four answers begin with.
    assert num_read + num_shared == sum(len(prompt.encode()) + 1 for prompt in prompts)
    assert num_shared > num_read / 2


def test_model_without_packs_is_left_to_harness(base: Base, rows_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = run(base, "commonsense", rows_folder, limit=1)
    monkeypatch.setattr(harness, "can_pack", lambda model: False)
    plain = run(base, "commonsense", rows_folder, limit=1)
    assert packed["results"] == plain["results"]


def test_winogrande_compares_what_follows_each_filling(base: Base, rows_folder: Path) -> None:
    results = run(base, "commonsense", rows_folder, limit=1)
    (sample,) = results["samples"]["local_winogrande"]
    assert sample["arguments"] == [
        ("The short", " was too big for it. so?"),
        ("The a somewhat longer one", " was too big for it. so?"),
    ]


def test_gsm8k_is_answered_by_generating(base: Base, rows_folder: Path) -> None:
    results = run(base, "gsm8k", rows_folder, shots=2, limit=1)
    sample = results["samples"]["local_gsm8k"][0]
    assert sample["arguments"][0][0].count("Question: train") == 2
    assert sample["arguments"][0][0].endswith("Question: test: 0 and 1?\nAnswer:")
    assert set(results["results"]["local_gsm8k"]) >= {"exact_match,strict-match", "exact_match,flexible-extract"}


@pytest.mark.parametrize("suite", list(SUITES))
def test_harness_has_every_task_of_the_hub(suite: str) -> None:
    assert set(SUITES[suite].rows) <= set(HubTasks(SUITES[suite]).all_tasks)


def test_missing_hub_data_ends_in_one_line(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to\nhost")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(UserError, match=r"gsm8k can't be loaded from the hub \(no route to host\); .* --data") as error:
        run_suite(*base, SUITES["gsm8k"], data=None, shots=0, limit=1, batch_size=2)
    assert "\n" not in str(error.value)


def test_chunked_scores_equal_those_of_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(4, 7).requires_grad_(False)
    hidden = [torch.randn(m, 4, generator=generator) for m in (3, 1, 5)]
    wanted = [torch.randint(0, 7, (len(h),), generator=generator) for h in hidden]
    wanted[1] = head(hidden[1]).argmax(-1)
    expected = [
        head(h).log_softmax(-1).gather(-1, w[:, None]).sum().item() for h, w in zip(hidden, wanted, strict=True)
    ]
    monkeypatch.setattr(harness, "CHUNK_VALUES", 14)  # two rows
    scores = harness._scores(head, hidden, wanted)
    assert [value for value, _ in scores] == pytest.approx(expected, rel=1e-5)
    assert scores[1][1] is True
    assert [greedy for _, greedy in scores] == [
        bool((head(h).argmax(-1) == w).all()) for h, w in zip(hidden, wanted, strict=True)
    ]
