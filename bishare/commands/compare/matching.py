"""The number of values that each method trains, counted before any training, and ranks that match a number."""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from bishare.commands.compare.comparison import Comparison
from bishare.commands.compare.runs import Run, tree_of
from bishare.commands.config.sections import num_classes_of
from bishare.commands.config.settings import read_settings
from bishare.commands.plan.plan import merge_as_planned
from bishare.errors import UserError
from bishare.models.architectures import build_adapter, build_on_meta, find_architecture

HIGHEST = 4096
"""The largest value that is tried for an option."""


def count(
    comparison: Comparison, method: str, adapter: Mapping[str, Any] | None = None, options: Sequence[str] = ()
) -> int:
    """Live values of a method's adapter at the end of a run, on the shapes of the first task's base.

    Args:
        comparison: The comparison.
        method: Name of the method.
        adapter: Options of the adapter that were solved for.
        options: Command-line options of every ``fit``.

    Raises:
        UserError: For every mistake in the method's configuration.
    """
    first = comparison.methods[method].learning_rates[0]
    tree = tree_of(comparison, Run(next(iter(comparison.tasks)), method, first, comparison.seeds[0]), adapter)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{method}.yaml")
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        settings = read_settings(["--config", str(file), *options])
    model = settings.model
    base = _shapes(model.base, model.revision, model.trust_remote_code, num_classes_of(settings.data))
    built = build_adapter(base, model.adapter)
    merge_as_planned(built, settings.trainer)
    return built.num_parameters()


@functools.cache
def _shapes(base: str, revision: str | None, trust_remote_code: bool, num_classes: int | None) -> PreTrainedModel:
    """The base on the meta device, built once for all tried ranks."""
    config = find_architecture(base, revision=revision, trust_remote_code=trust_remote_code)
    return build_on_meta(config, num_classes=num_classes, trust_remote_code=trust_remote_code)


def match(comparison: Comparison, options: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """Solve for the options that give each method at most as many values as ``comparison.match`` says.

    Returns:
        By method, the adapter's solved option.

    Raises:
        UserError: A method has more values even with the option at 1.
    """
    if comparison.match is None:
        return {}
    if isinstance(comparison.match, int):
        target = comparison.match
    else:
        target = count(comparison, comparison.match, options=options)
    found: dict[str, dict[str, int]] = {}
    for name, method in comparison.methods.items():
        if method.solve is None or name == comparison.match:
            continue
        option = method.solve

        def fits(value: int, name: str = name, option: str = option) -> bool:
            try:
                return count(comparison, name, {option: value}, options) <= target
            except UserError:
                # The value is too small for the method, as for VB-LoRA's bank: larger ones are tried. A mistake of
                # another kind remains at the solved value, and ends the command there.
                return True

        value = largest(fits)
        if value == 0:
            raise UserError(f"methods.{name} has more than {target:,} values even with {option} 1; leave out solve.")
        found[name] = {option: value}
    return found


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``HIGHEST`` that fits, given that all smaller numbers fit; 0 if 1 does not."""
    # Doubling finds a number that does not fit, halving the interval the largest that does.
    low, high = 0, 1
    while high <= HIGHEST and fits(high):
        low, high = high, 2 * high
    high = min(high, HIGHEST + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
