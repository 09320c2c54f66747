import json
import zlib
from base64 import b85decode, b85encode
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from bishare.adapters.base import Adapter
from bishare.adapters.bishare import BiShareConfig
from bishare.adapters.checkpoint import read_adapter, save_adapter
from bishare.adapters.factors import Slot
from bishare.adapters.lora import LoRAConfig
from bishare.adapters.registry import METHODS, config_class
from bishare.errors import UserError
from bishare.models.attach import adapter_of, attach, load_adapter
from tests.randomised import randomise

ModelFactory = Callable[..., PreTrainedModel]
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def adapted(tiny_model: ModelFactory, **options: object) -> Adapter:
    """A Bi-Share adapter on a tiny Llama, every value random."""
    adapter = attach(tiny_model("llama"), BiShareConfig(size=12, **options))
    randomise(adapter)
    return adapter


def rewrite(folder: Path, *, header: Callable[[dict], None] | None = None, **changes: Tensor | None) -> None:
    """Change the header or tensors of a saved adapter; a tensor set to None is dropped."""
    path = folder / WEIGHTS
    with safe_open(path, framework="pt") as file:
        about = json.loads(zlib.decompress(b85decode(file.metadata()["bishare"])))
    if header is not None:
        header(about)
    tensors = {name: t for name, t in (load_file(path) | changes).items() if t is not None}
    packed = b85encode(zlib.compress(json.dumps(about).encode())).decode()
    save_file(tensors, path, metadata={"bishare": packed})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(tiny_model: ModelFactory, folder: Path, match: str) -> None:
    """Loading fails in one line, and the model is as it was."""
    model = tiny_model("llama")
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(UserError, match=match) as error:
        load_adapter(model, folder)
    assert "\n" not in str(error.value)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_files_name_their_method(method: str, tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(attach(tiny_model("llama"), config_class(method)()), tmp_path)

    assert json.loads((tmp_path / CONFIG).read_text())["method"] == method
    assert type(read_adapter(tmp_path).config) is config_class(method)


def test_folder_says_what_the_adapter_is(tiny_model: ModelFactory, tmp_path: Path) -> None:
    adapter = adapted(tiny_model, r_local=1, targets=["q", "down"], layers=[0, 2])

    save_adapter(adapter, tmp_path / "new" / "folder", base="tiny/llama")

    file = read_adapter(tmp_path / "new" / "folder")
    assert (file.base, file.config, file.slots) == ("tiny/llama", adapter.config, adapter.slots)
    about = json.loads((tmp_path / "new" / "folder" / CONFIG).read_text())
    assert about["base"] == "tiny/llama"
    assert about["config"]["r_local"] == 1
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [CONFIG, WEIGHTS]


def test_values_are_stored_bitwise(tiny_model: ModelFactory, tmp_path: Path) -> None:
    adapter = adapted(tiny_model)

    save_adapter(adapter, tmp_path)

    stored = load_file(tmp_path / WEIGHTS)
    for name, p in adapter.named_parameters():
        assert stored[name].dtype == torch.float32
        assert torch.equal(stored[name], p)


def test_same_adapter_gives_the_same_bytes(tiny_model: ModelFactory, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_adapter(adapted(tiny_model), tmp_path / name)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("ranks", [(0, 0, 16), (0, 1, 1), (2, 4, 16)], ids=str)
@pytest.mark.parametrize("transform", ["slice", "gate", "kronecker"])
def test_file_holds_little_but_the_values(transform: str, ranks: tuple[int, int, int], tmp_path: Path) -> None:
    r_local, r_intra, r_inter = ranks
    shapes = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "up": (576, 1536), "down": (1536, 576)}
    slots = [
        Slot(name=f"model.layers.{layer}.block.{kind}_proj", layer=layer, kind=kind, in_features=n, out_features=m)
        for layer in range(30)
        for kind, (n, m) in shapes.items()
    ]
    config = BiShareConfig(transform=transform, r_local=r_local, r_intra=r_intra, r_inter=r_inter)
    adapter = config.build(slots)

    save_adapter(adapter, tmp_path)

    num_tensors = len(list(adapter.parameters()))
    size = (tmp_path / WEIGHTS).stat().st_size
    assert size <= 4 * adapter.num_parameters() * 1.01 + 128 * num_tensors


def test_saving_replaces_an_earlier_adapter(tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(attach(tiny_model("llama"), LoRAConfig(r=2)), tmp_path)
    adapter = adapted(tiny_model)

    save_adapter(adapter, tmp_path)

    assert load_adapter(tiny_model("llama"), tmp_path).config == adapter.config


@pytest.mark.parametrize("failing", [CONFIG, WEIGHTS])
def test_failed_save_leaves_the_earlier_adapter(
    failing: str, tiny_model: ModelFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = adapted(tiny_model)
    save_adapter(earlier, tmp_path)
    replace = Path.replace

    def disk_full(self: Path, target: Path) -> Path:
        if Path(target).name == failing:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(UserError, match="No space left"):
        save_adapter(attach(tiny_model("llama"), LoRAConfig(r=2)), tmp_path)

    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    loaded = load_adapter(tiny_model("llama"), tmp_path)
    assert loaded.config == earlier.config
    assert all(torch.equal(p, loaded.get_parameter(name)) for name, p in earlier.named_parameters())


def test_impossible_folder_is_an_error_of_one_line(tiny_model: ModelFactory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(UserError, match="file") as error:
        save_adapter(adapted(tiny_model), tmp_path / "file" / "adapter")

    assert "\n" not in str(error.value)


def test_a_missing_adapter_is_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    assert_refused(tiny_model, tmp_path, match=WEIGHTS)


def test_run_folder_is_refused_naming_its_adapter(tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(adapted(tiny_model), tmp_path / "adapter")

    assert_refused(tiny_model, tmp_path, match=r"did you mean .*adapter\?")


@pytest.mark.parametrize("name", ["adapter_model.bin", "head.pt"])
def test_folder_with_a_pickle_is_refused(name: str, tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(adapted(tiny_model), tmp_path)
    torch.save({}, tmp_path / name)

    assert_refused(tiny_model, tmp_path, match=f"{name}, a pickle")


def test_pickle_named_as_weights_is_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(adapted(tiny_model), tmp_path)
    torch.save({"inter.A.all": torch.ones(2, 2)}, tmp_path / WEIGHTS)

    assert_refused(tiny_model, tmp_path, match=f"{WEIGHTS} can't be read")


def test_a_file_cut_short_is_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(adapted(tiny_model), tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()

    for size in (0, 4, 100, len(data) // 2, len(data) - 1):
        (tmp_path / WEIGHTS).write_bytes(data[:size])
        assert_refused(tiny_model, tmp_path, match=WEIGHTS)


def test_file_of_another_tool_is_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2, 2)}, tmp_path / WEIGHTS, metadata={"format": "pt"})

    assert_refused(tiny_model, tmp_path, match="bishare")


@pytest.mark.parametrize("header", ["{}", 'not base 85 ~ "', b85encode(b"not deflated").decode()])
def test_a_damaged_header_is_refused(header: str, tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_file({"inter.A.all": torch.ones(2, 2)}, tmp_path / WEIGHTS, metadata={"bishare": header})

    assert_refused(tiny_model, tmp_path, match="damaged")


def test_endless_header_is_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    header = b85encode(zlib.compress(b'"' + b"a" * (1 << 26) + b'"')).decode()
    save_file({"inter.A.all": torch.ones(2, 2)}, tmp_path / WEIGHTS, metadata={"bishare": header})

    assert_refused(tiny_model, tmp_path, match="damaged")


def test_adapter_of_another_model_is_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(attach(tiny_model("mistral").half(), LoRAConfig(targets=["q"], layers=[1])), tmp_path, base="other")
    rewrite(tmp_path, header=lambda about: about["slots"][0].__setitem__(3, 48))

    assert_refused(tiny_model, tmp_path, match=r"model\.layers\.1\.self_attn\.q_proj.*48.*32")


def test_an_unknown_method_is_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(adapted(tiny_model), tmp_path)
    rewrite(tmp_path, header=lambda about: about.update(method="os.system"))

    assert_refused(tiny_model, tmp_path, match="os.system")


def test_unknown_option_and_newer_format_are_refused(tiny_model: ModelFactory, tmp_path: Path) -> None:
    save_adapter(adapted(tiny_model), tmp_path)
    rewrite(tmp_path, header=lambda about: about["config"].update(r_galaxy=3))
    assert_refused(tiny_model, tmp_path, match="r_galaxy")

    rewrite(tmp_path, header=lambda about: about.update(format=99))
    assert_refused(tiny_model, tmp_path, match="99")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inter.A.all": None}, "inter.A.all"),
        ({"intra.B.7": torch.ones(12, 4)}, "intra.B.7"),
        ({"inter.A.all": torch.ones(16, 13)}, "inter.A.all"),
    ],
    ids=["missing", "unknown", "another shape"],
)
def test_tensor_of_wrong_shape_is_named(
    change: dict[str, Tensor | None], named: str, tiny_model: ModelFactory, tmp_path: Path
) -> None:
    save_adapter(adapted(tiny_model), tmp_path)
    rewrite(tmp_path, **change)

    assert_refused(tiny_model, tmp_path, match=named)


def test_adapter_in_a_bf16_base_is_fp32(tiny_model: ModelFactory, tmp_path: Path) -> None:
    saved = adapted(tiny_model)
    save_adapter(saved, tmp_path)
    model = tiny_model("llama").bfloat16()

    load_adapter(model, tmp_path)

    for name, p in adapter_of(model).named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, saved.get_parameter(name))
