"""Runs a suite on a model in memory through lm-evaluation-harness, which makes the prompts and keeps the scores.

Log-likelihoods are computed here: requests go through the model in packs without padding, requests that read the same
tokens (answers A, B, C, D) share one pass, and the head is applied to the answers' tokens only.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are a package of their own
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from bishare.commands.evaluate.catalog import FOLDER, Suite
from bishare.data.encoding import NO_LABEL
from bishare.data.packing import pack
from bishare.errors import UserError
from bishare.models.head import head_of
from bishare.models.packed_attention import can_pack, model_inputs, use_packed_attention

CHUNK_VALUES = 2**23
"""Logits in existence at once: 32 MiB in fp32."""

Request = tuple[tuple[str, str], list[int], list[int]]
"""Texts of context and continuation, and their tokens."""


def run_suite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    *,
    data: str | None,
    shots: int,
    limit: int | None,
    batch_size: int,
) -> dict[str, Any]:
    """What ``lm_eval.simple_evaluate`` returns, with every request's result under ``samples``.

    Args:
        model: In evaluation mode, with or without an adapter.
        tokenizer: The base model's.
        suite: What to run.
        data: Folder of local rows; None for the hub's data.
        shots: Examples before every question.
        limit: Questions of each task, the first ones; all of them by default.
        batch_size: Requests in one pass.

    Raises:
        UserError: The data can't be had.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    use_packed_attention(model)
    lm = PackedLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    # Bars while prompts are made and tokenised, one for every task: that takes no time.
    with mock.patch("lm_eval.api.task.tqdm", _no_bar), mock.patch("lm_eval.api.model.tqdm", _no_bar):
        results = lm_eval.simple_evaluate(
            lm,
            tasks=[suite.local_task] if data else list(suite.hub_tasks),
            task_manager=local_tasks(data) if data else HubTasks(suite),
            num_fewshot=shots,
            limit=limit,
        )
    assert isinstance(results, dict)
    return results


def local_tasks(data: str) -> TaskManager:
    """The harness's index of our tasks on the local rows in a folder."""
    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"data": data})


class HubTasks(TaskManager):  # type: ignore[misc]  # lm_eval has no types
    """The harness's index of its own tasks of one suite."""

    def __init__(self, suite: Suite) -> None:
        root = Path(lm_eval.__file__).parent / "tasks"
        super().__init__(include_path=[str(root / folder) for folder in suite.folders], include_defaults=False)

    @override
    def load(self, task_list: Any) -> Any:
        """Tasks with their data, which is downloaded here."""
        try:
            return super().load(task_list)
        except Exception as error:  # no common base: HTTP clients, file systems, parsers, those of datasets
            raise UserError(
                f"the data of {', '.join(task_list)} can't be loaded from the hub ({' '.join(str(error).split())}); "
                "check the network, or give a folder of local rows with --data."
            ) from error


def _no_bar(items: Iterable[Any], **_: object) -> Iterable[Any]:
    return items


class PackedLM(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """The harness's model with its log-likelihoods computed in packs, where model and head allow it."""

    @override
    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding would give."""
        head = head_of(self.model)
        if head is None or not can_pack(self.model):
            plain: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return plain
        readers: dict[tuple[int, ...], list[int]] = {}  # what the model reads, and the requests that read it
        for index, (_, context, continuation) in enumerate(requests):
            tokens = (context + continuation)[-(self.max_length + 1) : -1]
            readers.setdefault(tuple(tokens), []).append(index)
        order = sorted(readers)  # neighbours share the most tokens: the choices of a question, the shots of a task
        results: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc="answers", disable=disable_tqdm) as bar:
            for first in range(0, len(order), self.batch_size):
                sequences = order[first : first + self.batch_size]
                longest = [max(len(requests[index][2]) for index in readers[tokens]) for tokens in sequences]
                states = dict(zip(sequences, self._hidden(sequences, longest), strict=True))
                read_by = [(index, states[tokens]) for tokens in sequences for index in readers[tokens]]
                wanted = [torch.tensor(requests[index][2], device=self.device) for index, _ in read_by]
                hidden = [state[-len(w) :] for (_, state), w in zip(read_by, wanted, strict=True)]
                results |= zip((index for index, _ in read_by), _scores(head, hidden, wanted), strict=True)
                bar.update(len(read_by))
        return [results[index] for index in range(len(requests))]

    def _hidden(self, sequences: Sequence[tuple[int, ...]], needed: Sequence[int]) -> tuple[Tensor, ...]:
        """The last hidden states [at least ``needed``, d] of each of some token sequences."""
        ids = [torch.tensor(tokens) for tokens in sequences]
        # Labels say which states must be there: those before a label, and the last.
        labels = [
            torch.where(torch.arange(len(row)) > len(row) - num, row, NO_LABEL)
            for row, num in zip(ids, needed, strict=True)
        ]
        batch = {name: values.to(self.device) for name, values in pack(ids, labels).items()}
        hidden: Tensor = self.model.base_model(**model_inputs(batch), use_cache=False)[0][0]
        return torch.split(hidden, batch["lengths"].tolist())


def _scores(head: nn.Module, hidden: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[tuple[float, bool]]:
    """For each of some answers, its log-likelihood, and whether each of its tokens is the likeliest.

    Args:
        head: From [.., d] to logits [.., v].
        hidden: The states before the answers' tokens, [m_i, d].
        wanted: The answers' tokens, [m_i].
    """
    chosen, likeliest = [], []
    rows = max(1, CHUNK_VALUES // getattr(head, "out_features", 2**17))
    for states, tokens in zip(_chunks(hidden, rows), _chunks(wanted, rows), strict=True):
        logits = head(states).float()
        chosen.append(logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0])
        likeliest.append(logits.argmax(-1) == tokens)
    sizes = [len(tokens) for tokens in wanted]
    parts = zip(_chunks(chosen, sizes), _chunks(likeliest, sizes), strict=True)
    return [(float(likelihood.sum()), bool(greedy.all())) for likelihood, greedy in parts]


def _chunks(parts: Sequence[Tensor], sizes: int | list[int]) -> tuple[Tensor, ...]:
    """Dealt out anew along the first dimension, in the same order."""
    return torch.split(torch.cat(list(parts)), sizes)
