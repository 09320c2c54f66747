"""Pictures are drawn for all that an analysis has."""

from pathlib import Path

from bishare.adapters.lora import LoRAConfig
from bishare.commands.analyze.analysis import Options, analyze
from bishare.commands.analyze.pictures import pictures
from tests.commands.analyze.adapters import write_adapter


def test_pictures_of_an_adapter_alone(kronecker: str) -> None:
    assert list(pictures(analyze(Options(adapter=kronecker)))) == [
        "updates_within_layers",
        "updates_across_layers",
        "updates_by_kind",
        "ranks",
        "ranks_by_layer",
        "contribution",
    ]


def test_text_and_second_adapter_add_pictures(kronecker: str, rows: str) -> None:
    found = pictures(analyze(Options(adapter=kronecker, against=kronecker, data=rows)))
    assert {"outputs_within_layers", "outputs_across_layers", "outputs_by_kind", "against"} < set(found)
    left, right, *_ = found["against"].axes
    assert (left.get_title(), right.get_title()) == ("against", "against random factors")


def test_single_layer_has_no_maps_across(base: str, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path, LoRAConfig(r=2, layers=[1]))
    found = pictures(analyze(Options(adapter=adapter)))
    assert list(found) == ["updates_within_layers", "ranks", "ranks_by_layer", "contribution"]
