"""Time per question to rank an answer list, in batches against one answer after the other, in one run.

    OMP_NUM_THREADS=1 python tools/bench_answer_ranking.py --k 128
    python tools/bench_answer_ranking.py --width 768 --layers 12 --heads 12 --questions 64 --device cuda

A random BLIP decoder chooses among random answers whose lengths are those of VQA v2's list, about: most have one
token. Every way is given the states of the questions, so that none computes an image or a question again:

- ``upop``: candidates side by side in one sequence, shortest first;
- ``repeated states``: the authors' way, one row per candidate, padded to the longest answer of the list, with a copy of
  the question's states each;
- ``one by one``: a forward pass per candidate.

All ways have to choose the same answers. The baseline of the speed-up is ``one by one``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from upop.families.blip_attention import swap_attention_
from upop.tasks.answer_ranking import AnswerList, rank_answers

VOCABULARY, START, END, PAD = 30524, 30522, 102, 0
LENGTHS = {1: 0.75, 2: 0.17, 3: 0.06, 5: 0.02}
"""Tokens of an answer without the special ones, and the share of answers that have so many."""
QUESTION = (6, 20)
"""Least and most tokens of a question."""


def answer_list(count: int) -> AnswerList:
    """Random answers, many of the longer ones with the first token of another."""
    draw = random.Random(0)
    firsts = draw.sample(range(1000, 30000), max(1, int(0.8 * count)))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        length = draw.choices(list(LENGTHS), LENGTHS.values())[0]
        found[(draw.choice(firsts), *draw.choices(range(1000, 30000), k=length - 1))] = None
    longest = max(LENGTHS) + 2
    rows = [[START, *answer, END] for answer in found]
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return AnswerList.of(ids, (torch.arange(longest) < torch.tensor([[len(row)] for row in rows])).long(), START)


@torch.no_grad()
def candidates(model: BlipTextLMHeadModel, states: Tensor, mask: Tensor, answers: AnswerList, k: int) -> Tensor:
    """Answers whose first token is the most probable, ties as upop breaks them, ``(B, k)``."""
    start = torch.full((len(states), 1), START, device=states.device)
    logits = model(input_ids=start, encoder_hidden_states=states, encoder_attention_mask=mask).logits[:, 0]
    return logits[:, answers.ids[:, 1]].sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values


@torch.no_grad()
def repeated(model: BlipTextLMHeadModel, states: Tensor, mask: Tensor, answers: AnswerList, k: int) -> Tensor:
    """One row per candidate, with its own copy of the states."""
    chosen = candidates(model, states, mask, answers, k)
    ids, lengths = answers.ids[chosen].flatten(0, 1), answers.lengths[chosen].flatten()
    valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    logits = model(
        input_ids=ids,
        attention_mask=valid.long(),
        encoder_hidden_states=states.repeat_interleave(k, 0),
        encoder_attention_mask=mask.repeat_interleave(k, 0),
    ).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").masked_fill(~valid[:, 1:], 0.0)
    best = losses.sum(1).view(-1, k).argmin(1, keepdim=True)
    return answers.numbers[chosen.gather(1, best).squeeze(1)]


@torch.no_grad()
def one_by_one(model: BlipTextLMHeadModel, states: Tensor, mask: Tensor, answers: AnswerList, k: int) -> Tensor:
    """A forward pass per candidate, without any padding."""
    best = []
    for state, length in zip(states, mask.sum(1).tolist(), strict=True):
        own = state[None, :length]
        chosen = candidates(model, own, mask.new_ones(1, length), answers, k)[0]
        losses = []
        for number in chosen.tolist():
            ids = answers.ids[number : number + 1, : int(answers.lengths[number])]
            logits = model(input_ids=ids[:, :-1], encoder_hidden_states=own).logits[0]
            losses.append(F.cross_entropy(logits, ids[0, 1:], reduction="sum").item())
        best.append(answers.numbers[chosen[losses.index(min(losses))]])
    return torch.stack(best)


WAYS: dict[str, Callable[..., Tensor]] = {"one by one": one_by_one, "repeated states": repeated, "upop": rank_answers}


def build(options: argparse.Namespace) -> BlipTextLMHeadModel:
    config = BlipTextConfig(
        vocab_size=VOCABULARY, hidden_size=options.width, encoder_hidden_size=options.width,
        intermediate_size=4 * options.width, num_hidden_layers=options.layers, num_attention_heads=options.heads,
        bos_token_id=START, sep_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    model = BlipTextLMHeadModel(config).eval().to(options.device)
    swap_attention_(model)
    return model


def timed(way: Callable[..., Tensor], arguments: tuple[object, ...], device: str) -> tuple[float, list[int]]:
    """Seconds, and the answers chosen."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = way(*arguments).tolist()  # waits for the device
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="width of the decoder")
    parser.add_argument("--layers", type=int, default=4, help="layers of the decoder")
    parser.add_argument("--heads", type=int, default=4, help="heads of each attention")
    parser.add_argument("--answers", type=int, default=3128, help="answers in the list")
    parser.add_argument("--k", type=int, default=128, help="candidates per question")
    parser.add_argument("--questions", type=int, default=8, help="questions of a batch")
    parser.add_argument("--rounds", type=int, default=5, help="times that each way runs, in turns")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    model, answers = build(options), answer_list(options.answers).to(torch.device(options.device))
    lengths = torch.randint(QUESTION[0], QUESTION[1] + 1, (options.questions,))
    mask = (torch.arange(QUESTION[1]) < lengths[:, None]).long().to(options.device)
    states = torch.randn(options.questions, QUESTION[1], options.width).to(options.device)
    arguments = (model, states, mask, answers, options.k)
    chosen = {name: timed(way, arguments, options.device)[1] for name, way in WAYS.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name, way in WAYS.items():
            seconds[name].append(timed(way, arguments, options.device)[0])

    device = torch.cuda.get_device_name() if options.device != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    table = Table(
        title=f"{options.k} of {options.answers} answers, {options.layers} layers of width {options.width}, "
        f"{options.questions} questions, {device}, {options.rounds} rounds"
    )
    for heading in ("way", "ms per question", "range", "speed-up", "same answers"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    base = statistics.median(seconds["one by one"])
    for name, times in seconds.items():
        each = [1000 * value / options.questions for value in times]
        same = sum(ours == theirs for ours, theirs in zip(chosen[name], chosen["one by one"], strict=True))
        table.add_row(
            name, f"{statistics.median(each):.1f}", f"{min(each):.1f} to {max(each):.1f}",
            f"{base / statistics.median(times):.1f} x", f"{same} of {options.questions}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
