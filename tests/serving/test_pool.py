"""Mixed batches give every row what its adapter alone gives; unknown, damaged and removed adapters are errors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.checkpoint import WEIGHTS, save_adapter
from bishare.adapters.lora import LoRAConfig
from bishare.errors import UserError
from bishare.models.attach import attach, remove
from bishare.serving.pool import AdapterPool
from tests.randomised import randomise
from tests.serving.rows import MIB, alone, greedy, ids


def test_mixed_rows_have_their_own_adapters_logits(
    pool: AdapterPool, tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]
) -> None:
    names: list[str | None] = [*adapter_folders, None]
    tokens = ids(len(names))
    logits = pool.logits(tokens, names)
    model = tiny_model("llama")
    base = alone(model, None, tokens)
    for row, name in enumerate(names):
        expected = alone(model, adapter_folders[name] if name else None, tokens[row : row + 1])[0]
        assert (logits[row] - expected).abs().max() < 1e-5, name
        assert name is None or (expected - base[row]).abs().max() > 1e-2, f"{name} does nothing: the test is blind"


def test_padding_does_not_change_a_rows_logits(
    pool: AdapterPool, tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]
) -> None:
    names = ["kronecker", "gate", "kronecker", "aslora"]
    lengths, width = [3, 9, 5, 7], 9
    tokens, mask = ids(4, width), torch.ones(4, width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, : width - length] = 0
        tokens[row, : width - length] = 0
    logits = pool.logits(tokens, names, attention_mask=mask)
    flipped = pool.logits(tokens.flip(1), names, attention_mask=mask.flip(1))
    model = tiny_model("llama")
    for row, (name, length) in enumerate(zip(names, lengths, strict=True)):
        prompt = tokens[row : row + 1, width - length :]
        assert (logits[row, width - length :] - alone(model, adapter_folders[name], prompt)[0]).abs().max() < 1e-5
        reverse = alone(model, adapter_folders[name], prompt.flip(1))[0]
        assert (flipped[row, :length] - reverse).abs().max() < 1e-5


def test_mixed_batch_generates_as_each_prompt_alone(
    pool: AdapterPool, tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]
) -> None:
    names = ["slice", None, "kronecker", "aslora, merged", "lora of another rank"]
    tokens, mask = ids(5, 8), torch.ones(5, 8, dtype=torch.int64)
    for row, padding in enumerate((0, 3, 5, 1, 2)):
        mask[row, :padding] = 0
        tokens[row, :padding] = 0
    answers = pool.generate(tokens, names, attention_mask=mask, max_new_tokens=6)[:, 8:]
    model = tiny_model("llama")
    for row, name in enumerate(names):
        prompt = tokens[row][mask[row].bool()]
        expected = greedy(model, adapter_folders[name] if name else None, prompt, 6).tolist()
        if 2 in expected:  # the end of text; what follows is padding
            expected = expected[: expected.index(2) + 1]
        assert answers[row, : len(expected)].tolist() == expected, name


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "qwen2"])
def test_other_architectures_are_served_too(
    architecture: str, tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:

    model = tiny_model(architecture)
    adapter = attach(model, LoRAConfig(r=2, targets=["qkv", "down"] if architecture.startswith("gpt") else ["q", "v"]))
    randomise(adapter)
    save_adapter(adapter, tmp_path)
    remove(model)
    pool = AdapterPool(model, adapter_bytes=MIB, factor_bytes=MIB)
    pool.add("one", tmp_path)
    tokens = ids(3)
    logits = pool.logits(tokens, ["one", None, "one"])
    fresh = tiny_model(architecture)
    for row, folder in enumerate((tmp_path, None, tmp_path)):
        assert (logits[row] - alone(fresh, folder, tokens[row : row + 1])[0]).abs().max() < 1e-5


def test_model_outside_batches_is_bitwise_unchanged(
    pool: AdapterPool, tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]
) -> None:
    pool.logits(ids(2), ["kronecker", None])
    model = tiny_model("llama")
    for folder in (None, adapter_folders["kronecker"]):  # an adapter may be attached to a pool's model too
        assert torch.equal(alone(pool.model, folder, ids(3)), alone(model, folder, ids(3)))


def test_batch_of_one_adapter_stores_factors_once(pool: AdapterPool) -> None:
    tokens = ids(6)
    mixed = pool.logits(tokens, ["kronecker"] * 5 + [None])
    several = pool.batches.used
    pool.batches.discard(lambda _: True)
    same = pool.logits(tokens, ["kronecker"] * 6)
    assert pool.batches.used * 5 == several
    assert (same[:5] - mixed[:5]).abs().max() < 1e-5


def test_factors_of_a_batch_are_built_once(pool: AdapterPool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pool.logits(ids(2), ["slice", "gate"])
    monkeypatch.setattr("bishare.serving.batch_factors.assemble_into", None)
    assert torch.equal(pool.logits(ids(2), ["slice", "gate"]), first)


def test_unknown_name_is_an_error(pool: AdapterPool) -> None:
    with pytest.raises(UserError, match="row 1 asks for adapter 'kroneker', which the pool does not have"):
        pool.logits(ids(2), ["gate", "kroneker"])


def test_removed_adapter_frees_its_name(pool: AdapterPool, adapter_folders: dict[str, Path]) -> None:
    gate, kronecker = (pool.logits(ids(1), [name]) for name in ("gate", "kronecker"))
    held = pool.adapters.used
    pool.remove("gate")
    assert pool.adapters.used < held
    with pytest.raises(UserError, match="'gate'"):
        pool.logits(ids(1), ["gate"])
    pool.add("gate", adapter_folders["kronecker"])
    assert torch.equal(pool.logits(ids(1), ["gate"]), kronecker)
    assert not torch.allclose(gate, kronecker)


def test_removed_adapter_serves_its_batch(pool: AdapterPool) -> None:
    tokens = ids(1)
    expected = pool.logits(tokens, ["gate"])
    with pool.batch(["gate"]):
        pool.remove("gate")
        assert torch.equal(pool.model(input_ids=tokens).logits, expected)
    assert pool.batches.used == 0


def test_name_cannot_be_taken_twice(pool: AdapterPool, adapter_folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="'gate' is there already"):
        pool.add("gate", adapter_folders["slice"])


def test_folder_without_an_adapter_is_refused(pool: AdapterPool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter 'new': .* holds no adapter"):
        pool.add("new", tmp_path / "nowhere")


def test_batch_with_another_row_count_is_refused(pool: AdapterPool) -> None:
    with pytest.raises(UserError, match="named for 2 rows"):
        pool.logits(ids(3), ["gate", "slice"])

    with pool.batch(["gate", "slice"]), pytest.raises(UserError, match="named for 2 rows"):
        pool.model(input_ids=ids(3))


@pytest.mark.parametrize("order", ["far", "near", "alternating"])
def test_calls_in_a_batch_keep_the_rows_order(
    order: str, pool: AdapterPool, tiny_model: Callable[..., PreTrainedModel], adapter_folders: dict[str, Path]
) -> None:
    for name in ("vera", "kronecker", "gate"):
        pool.add(f"other {name}", adapter_folders[name])
        adapter_folders[f"other {name}"] = adapter_folders[name]
    # The rows of one form are 0, 5 and 2, or 1, 3 and 2, when they are taken adapter by adapter.
    names = {
        "far": ["vera", None, "other vera", "lora", None, "vera", "lora"],
        "near": [None, "kronecker", "other kronecker", "kronecker", "vblora", "kronecker per rank", "lora", "lora"],
        "alternating": ["gate", "lora", "other gate", "vblora", "gate", "other gate", "lora", None],
    }[order]
    tokens = ids(len(names))
    with pool.batch(names):
        logits = pool.model(input_ids=tokens).logits
    model = tiny_model("llama")
    for row, name in enumerate(names):
        expected = alone(model, adapter_folders[name] if name else None, tokens[row : row + 1])[0]
        assert (logits[row] - expected).abs().max() < 1e-5, name


@torch.no_grad()
def test_changed_input_is_read_again(pool: AdapterPool) -> None:
    attention = pool.model.get_submodule("model.layers.0.self_attn")
    x = torch.randn(1, 4, attention.q_proj.in_features)
    with pool.batch(["vera"]):
        before, after = attention.k_proj(x.clone()), attention.k_proj(x + 1)
        attention.q_proj(x)
        assert torch.equal(attention.k_proj(x), before)
        attention.q_proj(x)
        assert torch.equal(attention.k_proj(x.add_(1)), after)


def test_nested_batch_is_an_error(pool: AdapterPool) -> None:
    with pool.batch(["gate"]), pytest.raises(UserError, match="inside a batch"):
        pool.logits(ids(1), ["slice"])
    assert pool.logits(ids(1), ["slice"]).shape == (1, 9, 64)


@pytest.mark.parametrize("damage", ["cut short", "overwritten", "gone"])
def test_damaged_file_fails_only_its_askers(pool: AdapterPool, adapter_folders: dict[str, Path], damage: str) -> None:
    path = adapter_folders["gate"] / WEIGHTS
    if damage == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage == "cut short" else b"\0" * len(data))
    used = pool.adapters.used
    with pytest.raises(UserError, match="adapter 'gate'"):
        pool.logits(ids(2), ["slice", "gate"])
    assert pool.batches.used == 0
    assert pool.adapters.used >= used
    assert pool.logits(ids(1), ["slice"]).isfinite().all()


def test_adapter_of_another_base_is_refused(
    pool: AdapterPool, tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:

    save_adapter(attach(tiny_model("gpt2"), LoRAConfig(targets=["c_fc"])), tmp_path, base="gpt2")
    pool.add("stranger", tmp_path)
    with pytest.raises(UserError, match=r"adapter 'stranger': .*c_fc"):
        pool.logits(ids(1), ["stranger"])


def test_model_with_an_adapter_is_refused(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    attach(model, LoRAConfig())
    with pytest.raises(UserError, match="carries an adapter"):
        AdapterPool(model, adapter_bytes=MIB, factor_bytes=MIB)
