"""``capacity``: the number of adapters that fit into a budget of memory, and the time to load and switch an adapter.

Zhou et al., 2025, Figure 6. Bytes are counted from the adapters' shapes. As far as this machine's memory allows, bytes
are also measured on real adapters; no weights of the base are needed. Each method's own form stands beside its export:
a plain LoRA of the assembled rank, in a vLLM slot of an allowed rank.
"""

import json
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from bishare.commands.capacity.measure import as_json, measure
from bishare.commands.config.settings import read_settings
from bishare.errors import UserError
from bishare.files import write_text


def run(command: str, arguments: Sequence[str]) -> None:
    """Print tables, and write ``capacity.json`` and ``capacity.png``.

    Raises:
        UserError: For every mistake in the configuration; the budget is not positive, or smaller than the base.
    """
    parser = ArgumentParser("python -m bishare capacity", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--budget-gb", type=float, default=80.0)
    parser.add_argument("--out", type=Path, default=Path("runs/capacity"))
    if {"-h", "--help"} & set(arguments):
        print(
            "usage: python -m bishare capacity --config FILE.yaml [--budget-gb 80] [--out runs/capacity] [--json]\n\n"
            "  --budget-gb  memory for base and adapters, in 10^9 bytes (80)\n"
            "  --out        folder for capacity.json and capacity.png (runs/capacity)\n"
            "  all other options as for plan"
        )
        return
    try:
        ours, rest = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise UserError(f"{error}; see `python -m bishare capacity --help`.") from error
    settings = read_settings(rest)
    report = measure(settings, budget=round(ours.budget_gb * 1e9))
    from bishare.commands.capacity.report import plot, show  # rich and matplotlib

    text = json.dumps(as_json(report), indent=1)
    write_text(ours.out / "capacity.json", text + "\n")
    plot(report).savefig(ours.out / "capacity.png", bbox_inches="tight")
    if settings.json:
        print(text)
    else:
        show(report)
        print(f"written to {ours.out}: capacity.json, capacity.png")
