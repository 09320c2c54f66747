"""``evaluate``: scores an adapter on commonsense questions, MMLU or GSM8K by lm-evaluation-harness."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bishare.commands.config.options import parse_options
from bishare.commands.evaluate.catalog import check_local, find_suite
from bishare.commands.evaluate.options import Options
from bishare.errors import UserError

DESCRIPTION = "Score an adapter on questions by lm-evaluation-harness."


def run(command: str, arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: For every mistake in the options, the adapter or the data.
    """
    options = parse_options(Options, command, arguments, description=DESCRIPTION)
    find_suite(options.suite)
    if options.data is not None:
        # huggingface_hub and datasets read the variables at their first import. Online, each look at the hub would
        # wait for the network.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    evaluate(options)


def evaluate(options: Options) -> Path:
    """Score an adapter; print the table and write JSON, a page and every question's result.

    Returns:
        The page.

    Raises:
        UserError: The suite is unknown or lacks files, the harness is not installed, or as for
            :func:`~bishare.commands.evaluate.evaluation.evaluate_adapter`.
    """
    suite = find_suite(options.suite)
    shots = suite.shots if options.shots is None else options.shots
    if options.data is not None:
        check_local(options.suite, suite, options.data, shots)
    if find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed; try `pip install 'bishare[eval]'`.")

    # Heavy imports, after the quick checks and after run() has set the environment.
    from bishare.commands.evaluate.evaluation import evaluate_adapter
    from bishare.commands.evaluate.report import make_report, save, show
    from bishare.commands.quiet import silence_known_noise

    silence_known_noise()
    evaluation = evaluate_adapter(options, suite, shots)
    report = make_report(options, suite, shots, evaluation)
    out = Path(options.out or Path(options.adapter).resolve().parent / "evaluation")
    page = save(report, evaluation.samples(), out)
    show(report)
    print(f"written: {page}, and beside it .json and .samples.jsonl")
    return page
