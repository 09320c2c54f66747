"""What a comparison is: methods, each trained on the same tasks, learning rates and seeds, and how the best is judged.

fit             what all runs have in common: the sections model, data and trainer of a configuration for fit
tasks           by name, what a task lays over that; left out if there is one task only
methods         by name: what the method lays over both; and of its own: label, learning_rates, solve
learning_rates  tried on the first seed; the best one is used for the others
seeds           of initial values and dropout; the order of the data is that of data.seed
metric, goal    what is compared, and whether the max or the min is best
match           a method, or a number of parameters: methods with solve get as many, by the option that it names
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
    """The option of the adapter that is solved for where parameter counts are matched."""
    tree: Mapping[str, Any]
    """Laid over the common configuration."""


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
        over: A file that is laid over it: another base, other data or learning rates.
        folder: Where runs and results go, instead of the folder that it names.
        match: Instead of what it names.

    Raises:
        UserError: A key is unknown, missing or holds something else than it should.
    """
    tree = read_tree(file)
    if over is not None:
        tree = overlay(tree, read_tree(over))
    _check_keys(tree, KEYS, str(file))
    for key in ("folder", "fit", "methods", "learning_rates", "seeds", "metric", "goal"):
        if not tree.get(key):
            raise UserError(f"{file}: {key} is not given.")
    _check_keys(tree["fit"], FIT_KEYS, f"{file}: fit")
    if tree["goal"] not in ("max", "min"):
        raise UserError(f"{file}: goal is {tree['goal']}; it must be max or min.")
    if any(not isinstance(seed, int) or seed < 0 for seed in tree["seeds"]):
        raise UserError(f"{file}: seeds is {tree['seeds']}; give whole numbers from 0.")
    rates = _rates(tree["learning_rates"], f"{file}: learning_rates")
    tasks = tree.get("tasks") or {"all": {}}
    for name, task in tasks.items():
        _check_keys(task, FIT_KEYS, f"{file}: tasks.{name}")
    methods = {}
    for name, options in tree["methods"].items():
        where = f"{file}: methods.{name}"
        _check_keys(options, METHOD_KEYS, where)
        own = options.get("learning_rates")
        methods[name] = Method(
            name=name,
            label=str(options.get("label", name)),
            learning_rates=rates if own is None else _rates(own, f"{where}.learning_rates"),
            solve=options.get("solve"),
            tree={key: options[key] for key in FIT_KEYS if key in options},
        )
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
