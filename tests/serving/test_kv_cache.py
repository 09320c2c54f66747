"""The cache with room holds what transformers' own holds, and copies it once in a block of tokens."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, MistralConfig, PreTrainedModel

from bishare.serving.kv_cache import BLOCK, PreallocatedLayer, preallocated_cache


def new_states(num_tokens: int, num_rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(num_rows, 3, num_tokens, 4), torch.randn(num_rows, 3, num_tokens, 5)


def test_model_generates_the_same_with_it(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    ids = torch.randint(3, 64, (2, 5), generator=torch.Generator().manual_seed(0))
    caches = preallocated_cache(model.config), DynamicCache(config=model.config)
    assert all(type(layer) is PreallocatedLayer for layer in caches[0].layers)
    with torch.no_grad():
        for _ in range(BLOCK + 3):  # past the end of the first room
            ours, theirs = (model(input_ids=ids, past_key_values=cache).logits[:, -1] for cache in caches)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
            ids = theirs.argmax(-1, keepdim=True)
    for ours_, theirs_ in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(ours_.keys, theirs_.keys, rtol=1e-5, atol=1e-6)
        assert ours_.get_seq_length() == theirs_.get_seq_length() == BLOCK + 7


def test_tokens_are_appended_until_room_is_full() -> None:
    layer = PreallocatedLayer()
    first, _ = layer.update(*new_states(4))
    places = {layer.update(*new_states(1))[0].data_ptr() for _ in range(BLOCK)}
    assert places == {first.data_ptr()}
    assert layer.update(*new_states(1))[0].data_ptr() != first.data_ptr()


def test_rows_may_be_chosen_repeated_and_shortened() -> None:
    ours, theirs = PreallocatedLayer(), DynamicCache().layer_class_to_replicate()
    changes: list[tuple[Callable[[PreallocatedLayer], None], int]] = [
        (lambda layer: layer.reorder_cache(torch.tensor([1, 0])), 2),
        (lambda layer: layer.crop(-2), 2),
        (lambda layer: layer.batch_repeat_interleave(3), 6),
        (lambda layer: layer.batch_select_indices(torch.tensor([4, 1, 1])), 3),
    ]
    num_rows = 2
    for change, num_rows_after in changes:
        states = new_states(3, num_rows)
        for layer in (ours, theirs):
            layer.update(*states)
            change(layer)
        num_rows = num_rows_after
    states = new_states(1, num_rows)
    for mine, expected in zip(ours.update(*states), theirs.update(*states), strict=True):
        assert torch.equal(mine, expected)


def test_layers_with_a_window_stay_unchanged() -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=8)
    kinds = [type(layer) for layer in DynamicCache(config=config).layers]
    assert [type(layer) for layer in preallocated_cache(config).layers] == kinds
    assert PreallocatedLayer not in kinds
