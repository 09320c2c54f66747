"""``analyze``: looks inside an adapter - similarity, ranks and levels - and writes tables, pictures and JSON.

Zhou et al., "Bi-Share LoRA", ICML 2025, Figures 1, 4 and 5. The base model is read only for measures on a given text;
all else comes from the adapter's file.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import rich
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bishare.commands.analyze.analysis import Options, analyze
from bishare.commands.config.options import parse_options
from bishare.commands.quiet import silence_known_noise
from bishare.errors import UserError

DESCRIPTION = "Look inside an adapter: similarity of the updates, ranks, and the contribution of each level."


def run(command: str, arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: For every mistake in the options, the adapters, the base or the data.
    """
    silence_known_noise()
    options = parse_options(Options, command, arguments, description=DESCRIPTION)
    out = Path(options.out or Path(options.adapter).resolve().parent / "analysis")
    if out.exists() and not out.is_dir():
        raise UserError(f"out {out} is a file; name a folder.")
    with _progress() as progress:
        analysis = analyze(options, progress)
    # matplotlib, which wrong options need not wait for
    from bishare.commands.analyze.report import save
    from bishare.commands.analyze.tables import show

    show(analysis)
    names = ", ".join(path.name for path in save(analysis, out))
    rich.get_console().print(f"written to {out}: {names}", highlight=False, soft_wrap=True)


def _progress() -> AbstractContextManager[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, transient=True)
