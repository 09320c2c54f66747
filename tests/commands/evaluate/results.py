"""Results of the harness on the commonsense suite."""

from bishare.commands.evaluate.catalog import SUITES
from bishare.commands.evaluate.published import TASKS

RESULTS = {
    "results": {
        **{
            f"local_{task}": {"alias": task, "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 4}
            for task in TASKS[:6]
        },
        **{
            f"local_{task}": {
                "acc,none": 0.1,
                "acc_stderr,none": 0.1,
                "acc_norm,none": 0.9,
                "acc_norm_stderr,none": 0.2,
            }
            for task in TASKS[6:]
        },
        "local_commonsense": {"alias": "local_commonsense"},
    },
    "group_subtasks": {"local_commonsense": [f"local_{task}" for task in TASKS]},
    "n-samples": {f"local_{task}": {"original": 9, "effective": 4} for task in TASKS},
}


SUITE = SUITES["commonsense"]
