"""The outputs of updates, as factors, are what the updates add in a real forward pass."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from bishare.adapters.bishare import BiShareConfig
from bishare.analysis.similarity.activations import outputs_of_updates
from bishare.analysis.similarity.layers import similarity
from bishare.models.attach import attach
from tests.randomised import randomise
from tests.reference import similarity_reference as reference


def documents(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, 64, (length,), generator=generator) for length in lengths]


def test_similarity_equals_that_of_materialised_outputs(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    randomise(attach(model, BiShareConfig(size=8)))
    adapter = model.bishare
    inputs: dict[str, list[torch.Tensor]] = {}
    for slot in adapter.slots:
        keep = inputs.setdefault(slot.name, [])
        model.get_submodule(slot.name).register_forward_pre_hook(lambda _, x, keep=keep: keep.append(x[0][0]))

    outputs = outputs_of_updates(model, documents(12, 9))

    materialised = {}
    for slot in adapter.slots:
        A, B = (factor.detach() for factor in adapter.factors(slot))
        x = torch.cat(inputs[slot.name])
        assert x.shape == (21, slot.in_features)
        materialised[slot.layer, slot.kind] = (x @ A.T @ B.T).T.double().numpy()
        torch.testing.assert_close(outputs[slot].B @ outputs[slot].A, (x @ A.T @ B.T).T, atol=1e-5, rtol=1e-4)
    maps = similarity(outputs).across["up"]
    pair = materialised[0, "up"], materialised[2, "up"]
    assert maps.rmi[0, 2].item() == pytest.approx(reference.relative_mutual_information(*pair), abs=1e-5)
    assert maps.cka[0, 2].item() == pytest.approx(reference.linear_cka(*pair), abs=1e-4)


def test_outputs_within_a_layer_are_comparable(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    randomise(attach(model, BiShareConfig(size=8)))
    measured = similarity(outputs_of_updates(model, documents(9)))
    assert not any(np.isnan(list(measured.within_cka.values())))
    assert not model.model.layers[0].self_attn.q_proj._forward_pre_hooks, "the hooks are gone"
