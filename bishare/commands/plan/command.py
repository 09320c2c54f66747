"""``plan``: parameters, files, memory and steps of a configuration, before any download.

Base and adapter are built on the meta device, so that the counts equal those of the training.
"""

import json
from collections.abc import Sequence

from bishare.commands.config.settings import read_settings
from bishare.commands.plan.plan import as_json, make_plan


def run(command: str, arguments: Sequence[str]) -> None:
    """Print the plan of a configuration.

    Raises:
        UserError: For every mistake in the configuration; the architecture of the base is not found.
    """
    settings = read_settings(arguments)
    plan = make_plan(settings)
    if settings.json:
        print(json.dumps(as_json(plan), indent=1))
    else:
        from bishare.commands.plan.tables import show  # imports rich, which JSON does not need

        show(plan)
