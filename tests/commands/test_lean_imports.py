"""The short way of importing modelling code: the same plan with less, and the usual way where it fails."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.places import PROJECT

HEAVY = ("scipy", "torch._dynamo.convert_frame", "torch.distributed.tensor")
"""Imported by a plan in the usual way."""

NEVER = ("lightning", "pytorch_lightning", "deepspeed", "datasets")
"""Imported by no plan."""


def plan(before: str, *, call: str, base: str = "huggyllama/llama-13b") -> tuple[dict[str, object] | str, str]:
    """Call ``main`` in a fresh interpreter with the command line of a plan.

    Returns:
        The plan, or the error's last line; and which of HEAVY and NEVER were imported when it ended.
    """
    code = (
        f"import atexit, sys\n{before}\nfrom bishare.cli import main\n"
        f"atexit.register(lambda: print(*[name for name in {HEAVY + NEVER} if name in sys.modules], file=sys.stderr))\n"
        f"sys.exit({call})"
    )
    options = ["plan", "--config", "configs/llama13b.yaml", "--json", "--model.base", base]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    *messages, heavy = done.stderr.splitlines()
    return json.loads(done.stdout) if done.returncode == 0 else messages[-1], heavy


@pytest.fixture(scope="module")
def usual() -> tuple[Any, str]:
    return plan("", call="main(sys.argv[1:])")


def test_neither_lightning_nor_deepspeed_is_imported(usual: tuple[Any, str]) -> None:
    found, imported = usual
    assert found["parameters"]["total"] == 2_884_544  # the As shared, for merging
    assert not set(imported.split()) & set(NEVER)


def test_planning_process_prints_the_same_with_less(usual: tuple[Any, str]) -> None:
    assert usual[1] == " ".join(HEAVY)
    assert plan("", call="main()") == (usual[0], "")


def test_failing_import_starts_over_as_usual(usual: tuple[Any, str]) -> None:
    broken = "import bishare.commands.lean_imports as lean; lean.MODELLING = ('transformers.no_such_module',)"

    found, _ = plan(broken, call="main()")

    assert found == usual[0]


def test_a_mistake_is_said_once() -> None:
    message, heavy = plan("", call="main()", base="nobody/nothing")

    assert "the architecture of nobody/nothing is not on this machine" in str(message)
    assert heavy == ""
