"""The help lists every public class with a sentence, read from the sources without importing them."""

import subprocess
import sys

import bishare.callbacks
import bishare.data
from bishare.commands.fit.class_list import PACKAGE, class_list, public_classes
from bishare.shipped import shipped_folder
from tests.places import PROJECT


def test_every_public_class_has_a_sentence() -> None:
    found = dict(public_classes(shipped_folder("callbacks")))
    assert set(found) == set(bishare.callbacks.__all__)
    assert found["GradientNorm"] == "Logs the L2 norm over all gradients of an optimizer step, before clipping."
    data = dict(public_classes(PACKAGE / "data"))
    assert set(data) == set(bishare.data.__all__)
    configs = dict(public_classes(PACKAGE, "Config"))
    assert set(configs) == {name for name in bishare.__all__ if name.endswith("Config")}
    for name, sentence in (found | data | configs).items():
        assert sentence.endswith("."), name


def test_list_names_the_keys_of_a_configuration() -> None:
    text = class_list()
    for words in ("Classes for trainer.callbacks", "  callbacks.Throughput\n", "  bishare.data.MixedData\n"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 80


def test_listing_imports_no_listed_module() -> None:
    heavy = "torch", "lightning", "datasets", "matplotlib", "bishare.callbacks", "bishare.data.rows"
    listing = "import sys; from bishare.commands.fit.class_list import class_list; class_list()"
    statement = f"{listing}; print({set(heavy)} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", statement], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
