"""The file of what came of a run."""

import json

from bishare.adapters.aslora import ASLoRAConfig
from callbacks import AdaptiveMerging, ResultFile


def test_end_of_training_leaves_metrics_and_costs(tiny_module, tiny_data, tiny_trainer, tmp_path) -> None:
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
    assert result["sharing"] == {}


def test_result_says_whose_b_layers_use(tiny_module, tiny_data, tiny_trainer, tmp_path) -> None:
    module = tiny_module(ASLoRAConfig(r=2, targets=["q"]))
    tiny_trainer(AdaptiveMerging(start=0, interval=1, num_merges=1), ResultFile()).fit(module, tiny_data)
    owners = json.loads((tmp_path / "result.json").read_text())["sharing"]
    (group,) = module.adapter.mergeable_groups().values()
    assert owners == {group.name: {str(layer): owner for layer, owner in enumerate(group.owners)}}
    assert len(set(group.owners)) == 2
