import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from bishare.adapters.factors import Factors
from bishare.adapters.transforms import Gate, Kronecker, Slice, Transform
from tests.reference.bishare_reference import (
    gate_update,
    kernel_repeats,
    kronecker_per_rank_update,
    kronecker_ranks,
    kronecker_update,
    slice_update,
)

POSITIONS = ["center", "top-left", "bottom-right"]
KERNELS = ["shared", "per_rank", "r_1", "1_r", "r_2", "2_r"]
# in, out of the weight; s = 4 divides both, none, one of them, or is larger than the weight.
SHAPES = [(8, 12), (9, 7), (8, 5), (3, 2), (1, 1)]
SIZE = 4


def random_pair(r: int, size_in: int, size_out: int) -> Factors:
    """A shared pair with no zero in it, in double precision, that asks for its gradient."""
    A = torch.randn(r, size_in, dtype=torch.float64, requires_grad=True)
    return Factors(A, torch.randn(size_out, r, dtype=torch.float64, requires_grad=True))


def randomised(transform: Transform) -> Transform:
    for p in transform.double().parameters():
        nn.init.normal_(p)
    return transform


def assert_same_value_and_gradient(fitted: Factors, expected: Tensor, leaves: Iterable[Tensor]) -> None:
    """The update that the pair stands for, and its gradient along a random direction, to 1e-10."""
    update = fitted.B @ fitted.A
    torch.testing.assert_close(update, expected, rtol=0, atol=1e-10)

    leaves = list(leaves)
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad((u * direction).sum(), leaves, allow_unused=True) for u in (update, expected)]
    for ours, reference in zip(*gradients, strict=True):
        assert reference is not None
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("num_in", "num_out"), [(9, 7), (6, 7), (9, 4), (4, 3), (1, 1)])
@pytest.mark.parametrize("r", [1, 3])
def test_slice_equals_its_reference(num_in: int, num_out: int, r: int, position: str) -> None:
    shared = random_pair(r, 9, 7)

    fitted = Slice(num_in, num_out, 9, 7, position)(shared)

    assert fitted.A.shape == (r, num_in)
    assert fitted.B.shape == (num_out, r)
    expected = slice_update(*shared, num_in=num_in, num_out=num_out, position=position)
    assert_same_value_and_gradient(fitted, expected, shared)


def test_slice_windows_lie_where_named() -> None:
    shared = Factors(torch.arange(7.0).unsqueeze(0), torch.arange(6.0).unsqueeze(1))
    windows = {position: Slice(4, 3, 7, 6, position)(shared) for position in POSITIONS}

    assert windows["center"].A.tolist() == [[1, 2, 3, 4]]  # offset (7 - 4) // 2
    assert windows["center"].B.flatten().tolist() == [1, 2, 3]  # offset (6 - 3) // 2
    assert windows["top-left"].A.tolist() == [[0, 1, 2, 3]]
    assert windows["top-left"].B.flatten().tolist() == [0, 1, 2]
    assert windows["bottom-right"].A.tolist() == [[3, 4, 5, 6]]
    assert windows["bottom-right"].B.flatten().tolist() == [3, 4, 5]


def test_slice_copies_nothing() -> None:
    shared = random_pair(2, 9, 7)

    fitted = Slice(4, 3, 9, 7, "center")(shared)

    assert fitted.A.untyped_storage().data_ptr() == shared.A.untyped_storage().data_ptr()
    assert fitted.B.untyped_storage().data_ptr() == shared.B.untyped_storage().data_ptr()


@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("r", [1, 3])
def test_gate_equals_its_reference(num_in: int, num_out: int, r: int) -> None:
    shared = random_pair(r, SIZE, SIZE)
    gate = randomised(Gate(num_in, num_out, SIZE, "kaiming_uniform"))

    fitted = gate(shared)

    gates = {"G_id": gate.in_down, "G_iu": gate.in_up, "G_od": gate.out_down, "G_ou": gate.out_up}
    assert [gates[name].shape for name in ("G_id", "G_iu", "G_od", "G_ou")] == [
        (1, num_in),
        (SIZE, 1),
        (1, SIZE),
        (num_out, 1),
    ]
    assert_same_value_and_gradient(fitted, gate_update(*shared, **gates), [*shared, *gates.values()])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("r", [1, 3])
def test_kronecker_equals_its_reference(num_in: int, num_out: int, r: int, kernel: str) -> None:
    transform = Kronecker(num_in, num_out, rank=r, size=SIZE, kernel=kernel, init="kaiming_uniform")
    K_A, K_B = randomised(transform).A, transform.B
    shared_rows, kernel_rows = (r, r) if kernel == "per_rank" else kronecker_ranks(kernel, r)
    assert Kronecker.shared_rank(r, kernel) == shared_rows
    assert K_A.shape == (kernel_rows, kernel_repeats(num_in, SIZE))
    assert K_B.shape == (kernel_repeats(num_out, SIZE), kernel_rows)
    shared = random_pair(shared_rows, SIZE, SIZE)

    fitted = transform(shared)

    assert fitted.rank == (r if kernel == "per_rank" else shared_rows * kernel_rows)
    reference = kronecker_per_rank_update if kernel == "per_rank" else kronecker_update
    expected = reference(*shared, K_A=K_A, K_B=K_B, num_in=num_in, num_out=num_out)
    assert_same_value_and_gradient(fitted, expected, [*shared, K_A, K_B])


@pytest.mark.parametrize("kernel", ["shared", "r_2", "2_r"])
def test_kronecker_has_the_kernel_outside(kernel: str) -> None:
    r = 2
    transform = randomised(Kronecker(8, 12, rank=r, size=SIZE, kernel=kernel, init="ones"))
    shared = random_pair(Kronecker.shared_rank(r, kernel), SIZE, SIZE)

    fitted = transform(shared)

    torch.testing.assert_close(fitted.A, torch.kron(transform.A, shared.A), rtol=0, atol=1e-12)
    torch.testing.assert_close(fitted.B, torch.kron(transform.B, shared.B), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "transform",
    [
        Slice(5, 3, 9, 7, "center"),
        *(Kronecker(5, 3, rank=0, size=SIZE, kernel=k, init="ones") for k in ("shared", "per_rank", "r_1", "r_2")),
    ],
    ids=lambda t: type(t).__name__,
)
def test_shared_pair_of_rank_zero_stays_empty(transform: Transform) -> None:
    size = (9, 7) if isinstance(transform, Slice) else (SIZE, SIZE)

    fitted = transform(random_pair(0, *size))

    assert fitted.A.shape == (0, 5)
    assert fitted.B.shape == (3, 0)


def test_gate_on_rank_zero_updates_nothing() -> None:
    fitted = randomised(Gate(5, 3, SIZE, "ones"))(random_pair(0, SIZE, SIZE))

    assert not (fitted.B @ fitted.A).any()


TRANSFORMS_WITH_PARAMETERS: dict[str, Callable[[str], Transform]] = {
    "gate": lambda init: Gate(300, 200, 100, init),
    "kronecker": lambda init: Kronecker(600, 400, rank=40, size=2, kernel="1_r", init=init),
}


@pytest.mark.parametrize("name", TRANSFORMS_WITH_PARAMETERS)
def test_every_initialisation_draws_what_it_says(name: str) -> None:
    for init in ("ones", "kaiming_uniform", "kaiming_normal"):
        transform = TRANSFORMS_WITH_PARAMETERS[name](init)
        for p in transform.parameters():
            nn.init.constant_(p, torch.nan)
        transform.reset_parameters()

        for p in transform.parameters():
            bound = 1 / math.sqrt(p.shape[1])  # Kaiming with a = sqrt(5): variance 1 / (3 fan-in)
            if init == "ones":
                assert (p == 1).all()
                continue
            assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)
            assert (p.abs().max() <= bound) == (init == "kaiming_uniform")
