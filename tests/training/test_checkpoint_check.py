"""A checkpoint is compared with the model before anything is loaded."""

import pytest
import torch

from bishare.errors import UserError
from bishare.training.checkpoint_check import check_shapes

WANTED = {"adapter.A": torch.Size([2, 4]), "adapter.B": torch.Size([3, 2])}


def checkpoint(**shapes: tuple[int, ...]) -> dict[str, object]:
    state = {f"adapter.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    return {"state_dict": state, "bishare": {"method": "lora", "base": "me/mine"}}


def test_equal_shapes_pass() -> None:
    check_shapes(checkpoint(A=(2, 4), B=(3, 2)), WANTED, prefix="adapter.")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"A": (5, 4), "B": (3, 2)}, r"A has shape \[5, 4\] there and \[2, 4\] here"),
        ({"A": (2, 4)}, r"B has shape absent there and \[3, 2\] here"),
        ({"A": (2, 4), "B": (3, 2), "C": (1,)}, r"C has shape \[1\] there and absent here"),
    ],
    ids=["other shape", "missing", "unknown"],
)
def test_first_other_tensor_is_named(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UserError, match=rf"\(lora on me/mine\) does not fit this run: {message}"):
        check_shapes(checkpoint(**shapes), WANTED, prefix="adapter.")


def test_checkpoint_of_another_program_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(no method on no base\)"):
        check_shapes({"state_dict": {}}, WANTED, prefix="")
