"""The command line: a table of commands, imported only to run, and a single line for each user's mistake."""

import difflib
import errno
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from bishare import callback_names
from bishare.errors import UserError
from bishare.version import __version__


class Command(NamedTuple):
    """A command of ``python -m bishare``."""

    help: str
    function: str
    """``module:function``, called with name and arguments of the command."""
    only_shapes: bool = False
    """Whether the command reads only the shapes of models."""


COMMANDS = {
    "fit": Command("train an adapter", "bishare.commands.fit.command:run"),
    "validate": Command("measure loss and accuracy on the validation data", "bishare.commands.fit.command:run"),
    "test": Command("the same as validate: there is no third split", "bishare.commands.fit.command:run"),
    "predict": Command("write answers to the prompts of the data", "bishare.commands.fit.command:run"),
    "preview": Command("show training examples as the model sees them", "bishare.commands.preview:run"),
    "export": Command("write an adapter as a PEFT LoRA or a full model", "bishare.commands.export.command:run"),
    "evaluate": Command(
        "score an adapter on commonsense, MMLU or GSM8K questions", "bishare.commands.evaluate.command:run"
    ),
    "analyze": Command("look inside an adapter: similarity, ranks, levels", "bishare.commands.analyze.command:run"),
    "compare": Command("train several methods alike; write a table and a plot", "bishare.commands.compare.command:run"),
    "capacity": Command("count the adapters that fit into a budget of memory", "bishare.commands.capacity.command:run"),
    "plan": Command(
        "count parameters and estimate memory and files, before any download",
        "bishare.commands.plan.command:run",
        only_shapes=True,
    ),
    "configs": Command("list the shipped configurations, or copy one", "bishare.commands.configs:run"),
}

KEPT_KERNELS = "64"
"""bfloat16 kernels that oneDNN keeps: enough for all layers of a pack. oneDNN makes kernels for each length of a pack;
the default of 1,024 kernels takes hundreds of megabytes, and few kernels are used again."""

# States of the machine and not bugs: shown without a traceback.
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Name and arguments of the command; by default those of the process, which then ends with the command.

    Returns:
        The exit code: 0 for success, 1 for a mistake in the input, 2 for an unknown command, 130 for an interrupt.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"bishare {__version__}")
        return 0
    if name not in COMMANDS:
        return _fail(f"{name} is not a command{_suggestion(name)}; `python -m bishare --help` lists all.", code=2)
    return _with_short_errors(lambda: _run(name, rest, ends_process=arguments is None))


def _run(name: str, arguments: Sequence[str], *, ends_process: bool) -> int:
    """Import and run a command.

    Returns:
        The exit code.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT_KERNELS)
    callback_names.install()
    from bishare.commands.config.shipped_files import with_shipped  # imports yaml, which help does not need

    given = with_shipped(name, arguments)
    # The imports of thousands of modules would start collections that free nothing and take a second.
    gc.disable()
    if ends_process and COMMANDS[name].only_shapes:
        lean = importlib.import_module("bishare.commands.lean_imports")
        return int(lean.run(lambda: _load(name)(name, given)))
    run = _load(name)
    if ends_process:
        gc.freeze()  # modules stay to the end
    gc.enable()
    run(name, given)
    return 0


def _with_short_errors(command: Callable[[], int]) -> int:
    """Run a command; mistakes of the user, states of the machine and interrupts become a line and an exit code."""
    try:
        return command()
    except UserError as error:
        return _fail(str(error), code=1)
    except BrokenPipeError:
        return _end_quietly()
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise
        return _fail(f"{error.strerror}: {error.filename or 'while writing'}", code=1)
    except KeyboardInterrupt:
        return _fail("interrupted.", code=130)
    except SystemExit as stop:
        # Lightning turns an interrupt into exit code 1.
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        return _fail("interrupted.", code=130)


def _load(name: str) -> Callable[[str, Sequence[str]], None]:
    module, function = COMMANDS[name].function.split(":")
    return cast(Callable[[str, Sequence[str]], None], getattr(importlib.import_module(module), function))


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    return (
        "Parameter-sharing LoRA: Bi-Share LoRA and ASLoRA for any Hugging Face model.\n\n"
        "usage: python -m bishare COMMAND [--config FILE.yaml ...] [--option value ...]\n\n"
        f"{commands}\n\n"
        "`python -m bishare COMMAND --help` lists a command's options; `make demo` shows a whole training."
    )


def _end_quietly() -> int:
    """Drop the rest of the output, of which a reader such as ``head`` wants no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails to write the rest when it ends
    return 1


def _suggestion(name: str) -> str:
    """A question for the nearest command; empty without a near name."""
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _fail(message: str, *, code: int) -> int:
    """Print a message in a line, with the rank in processes after the first, and return the exit code."""
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    where = "" if rank == "0" else f" (rank {rank})"
    print(f"bishare{where}: {' '.join(message.split())}", file=sys.stderr)
    return code
