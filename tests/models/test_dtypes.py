"""``auto`` is a type in which the device multiplies fast, and the slow ones are known."""

import pytest
import torch

from bishare.models.dtypes import base_type, is_slow


def pretend(monkeypatch: pytest.MonkeyPatch, *, multiplies_bf16: bool) -> None:
    monkeypatch.setattr(torch._C, "_has_mkldnn", True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: multiplies_bf16)


def test_auto_is_bfloat16_on_processors_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, multiplies_bf16=True)
    assert base_type("auto", "cpu") == "bfloat16"
    assert not is_slow("bfloat16", "cpu")


def test_auto_is_float32_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, multiplies_bf16=False)
    assert base_type("auto", "cpu") == "float32"
    assert is_slow("bfloat16", "cpu")
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert is_slow("float16", "cpu")


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_gpu_multiplies_them_all(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, multiplies_bf16=False)
    assert base_type("auto", device) == "bfloat16"
    assert not is_slow("float16", device)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_named_type_is_taken(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, multiplies_bf16=False)
    assert base_type(dtype, "cpu") == dtype
