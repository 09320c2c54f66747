"""The file of what came of a run."""

import json

from callbacks import ResultFile


def test_the_end_of_training_leaves_metrics_counts_and_costs(tiny_module, tiny_data, tiny_trainer, tmp_path) -> None:
    module = tiny_module()
    trainer = tiny_trainer(ResultFile())
    trainer.fit(module, tiny_data)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["val/loss"] == trainer.callback_metrics["val/loss"].item()
    assert result["parameters"] == module.adapter.num_parameters()
    assert result["head"] == 0
    assert result["steps"] == trainer.global_step > 0
    assert result["seconds"] > 0
    assert result["peak_gib"] > 0
