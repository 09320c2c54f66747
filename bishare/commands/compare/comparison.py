"""The configuration of a comparison: methods, each trained on the same tasks and seeds, and the judge of the best.

fit             common to all runs: the sections model, data and trainer of a configuration for fit
tasks           by name, the task's sections over fit; left out for a single task
methods         by name, the method's sections over fit and task; and label, learning_rates, solve
learning_rates  tried on the first seed; the best rate is used for the other seeds
seeds           of initial values and dropout; the order of the data follows data.seed
metric, goal    the compared number, and whether the max or the min is best
match           a method, or a number of parameters: solve names the option that is raised up to this number
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bishare.commands.config.trees import overlay, read_tree
from bishare.errors import UserError

KEYS = ("folder", "fit", "tasks", "methods", "learning_rates", "seeds", "metric", "goal", "match")
METHOD_KEYS = ("label", "learning_rates", "solve", "model", "data", "trainer")
FIT_KEYS = ("model", "data", "trainer")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One line of the table."""

    name: str
    label: str
    learning_rates: tuple[float, ...]
    solve: str | None
    """The adapter's option that is solved for when parameter counts are matched."""
    tree: Mapping[str, Any]
    """Sections of the method, laid over the common configuration."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A configuration of ``compare``, checked."""

    folder: Path
    fit: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Method]
    seeds: tuple[int, ...]
    metric: str
    is_max: bool
    match: str | int | None

    @property
    def num_runs(self) -> int:
        """Runs of the whole comparison."""
        return len(self.tasks) * sum(len(m.learning_rates) + len(self.seeds) - 1 for m in self.methods.values())


def read_comparison(
    file: Path, *, over: Path | None = None, folder: Path | None = None, match: str | None = None
) -> Comparison:
    """Read a configuration.

    Args:
        file: The configuration.
        over: A second file, laid over the first: with another base, data or learning rates.
        folder: Folder for runs and results, instead of the configuration's.
        match: Method or number of parameters, instead of the configuration's.

    Raises:
        UserError: A key is unknown or missing, or the value is of a wrong kind.
    """
    tree = read_tree(file)
    if over is not None:
        tree = overlay(tree, read_tree(over))
    _check_tree(tree, file)
    rates = _rates(tree["learning_rates"], f"{file}: learning_rates")
    tasks = tree.get("tasks") or {"all": {}}
    for name, task in tasks.items():
        _check_keys(task, FIT_KEYS, f"{file}: tasks.{name}")
    methods = {
        name: _read_method(name, options, rates, f"{file}: methods.{name}") for name, options in tree["methods"].items()
    }
    return Comparison(
        folder=folder or Path(tree["folder"]),
        fit=tree["fit"],
        tasks=tasks,
        methods=methods,
        seeds=tuple(tree["seeds"]),
        metric=tree["metric"],
        is_max=tree["goal"] == "max",
        match=_match(tree.get("match") if match is None else match, methods, str(file)),
    )


def _check_tree(tree: Mapping[str, Any], file: Path) -> None:
    _check_keys(tree, KEYS, str(file))
    # tasks and match may be left out.
    for key in ("folder", "fit", "methods", "learning_rates", "seeds", "metric", "goal"):
        if not tree.get(key):
            raise UserError(f"{file}: {key} is not given.")
    _check_keys(tree["fit"], FIT_KEYS, f"{file}: fit")
    if tree["goal"] not in ("max", "min"):
        raise UserError(f"{file}: goal is {tree['goal']}; it must be max or min.")
    if any(not isinstance(seed, int) or seed < 0 for seed in tree["seeds"]):
        raise UserError(f"{file}: seeds is {tree['seeds']}; give whole numbers from 0.")


def _read_method(name: str, options: Any, common_rates: tuple[float, ...], where: str) -> Method:
    _check_keys(options, METHOD_KEYS, where)
    own = options.get("learning_rates")
    return Method(
        name=name,
        label=str(options.get("label", name)),
        learning_rates=common_rates if own is None else _rates(own, f"{where}.learning_rates"),
        solve=options.get("solve"),
        tree={key: options[key] for key in FIT_KEYS if key in options},
    )


def _check_keys(tree: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} is {tree!r}; want keys and values.")
    if unknown := [key for key in tree if key not in known]:
        raise UserError(f"{where}: {unknown[0]} is not known; known are {', '.join(known)}.")


def _rates(values: Any, where: str) -> tuple[float, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} is {values!r}; give a list of numbers.")
    try:
        rates = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is {values!r}; give a list of numbers.") from error
    if any(rate <= 0 or not math.isfinite(rate) for rate in rates):
        raise UserError(f"{where} is {values!r}; each must be positive.")
    return rates


def _match(given: Any, methods: Mapping[str, Method], where: str) -> str | int | None:
    if given is None or given in methods:
        return given  # type: ignore[no-any-return]  # a method's name
    if str(given).isdigit() and int(given) > 0:
        return int(given)
    raise UserError(f"{where}: match is {given}; give a number of parameters or one of {', '.join(methods)}.")
