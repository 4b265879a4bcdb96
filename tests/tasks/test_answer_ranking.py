"""Ranking in batches against one answer after the other, scored by transformers' own loss."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from upop.tasks.answer_ranking import AnswerList, rank_answers, token_scores

START, PAD, LONGEST = 0, 1, 8


def decoder(seed: int = 0) -> Any:
    """In double precision, where two answers are never equally good by rounding."""
    return tiny.build("blip_vqa", seed).text_decoder.double()


def questions(rows: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States and mask of questions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    states = 3 * torch.randn(rows, 6, 24, generator=generator, dtype=torch.float64)
    return states, (torch.arange(6) < torch.tensor([6, 2, 4, 5, 1, 3])[:rows, None]).long()


def texts(count: int = 40, seed: int = 0, firsts: int = 6) -> list[list[int]]:
    """Different answers of one to six tokens, many with the same first one, with special tokens around them."""
    draw = random.Random(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        tail = [draw.randint(2, 12) for _ in range(draw.choice([0, 0, 1, 1, 2, 5]))]
        found[(7, draw.randint(2, 1 + firsts), *tail, 2)] = None
    return [list(answer) for answer in found]


def tokens(answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(answers), LONGEST), PAD)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(answer)
    return ids, (torch.arange(LONGEST) < torch.tensor([len(answer) for answer in answers])[:, None]).long()


def listed(answers: list[list[int]]) -> AnswerList:
    return AnswerList.of(*tokens(answers), START)


@torch.no_grad()
def score(model: Any, state: Tensor, answer: list[int], smoothing: float) -> float:
    """Score of one answer to one question, which comes without padding."""
    ids = torch.tensor([[START, *answer[1:]]])
    model.label_smoothing = smoothing
    return -model(input_ids=ids, encoder_hidden_states=state[None], labels=ids, reduction="none").loss.item()


def by_loop(
    model: Any, states: Tensor, mask: Tensor, answers: list[list[int]], k: int, smoothing: float = 0.0
) -> list[int]:
    """The best answer to each question, one candidate after the other."""
    best = []
    for state, length in zip(states, mask.sum(1), strict=True):
        valid = state[:length]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[START]]), encoder_hidden_states=valid[None]).logits[0, 0].tolist()
        order = sorted(range(len(answers)), key=lambda n: (-logits[answers[n][1]], len(answers[n]), answers[n]))
        best.append(max(order[:k], key=lambda n: score(model, valid, answers[n], smoothing)))
    return best


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("part", [1, 7, 1000])
def test_ranking_the_whole_list_equals_a_loop(smoothing: float, part: int) -> None:
    answers, picked = texts(), set()
    for seed in range(3):
        model, (states, mask) = decoder(seed), questions(6, seed)
        found = rank_answers(model, states, mask, listed(answers), len(answers), smoothing, part).tolist()
        assert found == by_loop(model, states, mask, answers, len(answers), smoothing)
        picked.update(found)
    assert len(picked) > 2, "an answer that always wins would show little"


@pytest.mark.parametrize("k", [1, 2, 5, 13, 39])
def test_only_the_k_answers_with_the_most_probable_first_token_are_scored(k: int) -> None:
    answers = texts(seed=1)
    model, (states, mask) = decoder(1), questions(6)
    assert rank_answers(model, states, mask, listed(answers), k, part=4).tolist() == by_loop(
        model, states, mask, answers, k
    )


def test_more_candidates_never_find_a_worse_answer() -> None:
    answers = texts(seed=2)
    model, (states, mask) = decoder(2), questions(3)
    best = [float("-inf")] * 3
    for k in range(1, len(answers) + 1):
        found = rank_answers(model, states, mask, listed(answers), k).tolist()
        scores = [score(model, states[row, : mask[row].sum()], answers[n], 0.0) for row, n in enumerate(found)]
        assert all(after >= before - 1e-9 for before, after in zip(best, scores, strict=True))
        best = scores


@pytest.mark.parametrize("k", [3, 20, 40])
def test_the_order_of_answers_and_questions_does_not_matter(k: int) -> None:
    answers, draw = texts(seed=3), random.Random(0)
    model, (states, mask) = decoder(3), questions(5)
    expected = [answers[number] for number in rank_answers(model, states, mask, listed(answers), k)]
    for _ in range(5):
        shuffled = draw.sample(answers, len(answers))
        order = draw.sample(range(5), 5)
        found = rank_answers(model, states[order], mask[order], listed(shuffled), k).tolist()
        assert [shuffled[number] for number in found] == [expected[row] for row in order]


def test_padding_of_questions_and_answers_does_not_matter() -> None:
    answers = texts(seed=4)
    model, (states, mask) = decoder(4), questions(5)
    together = rank_answers(model, states, mask, listed(answers), 20).tolist()
    alone = [
        int(rank_answers(model, states[row : row + 1, :length], mask[row : row + 1, :length], listed(answers), 20))
        for row, length in enumerate(mask.sum(1).tolist())
    ]
    ids, valid = tokens(answers)
    wide = AnswerList.of(F.pad(ids, (0, 3), value=9), F.pad(valid, (0, 3)), START)
    assert together == alone == rank_answers(model, states, mask, wide, 20).tolist()


def test_answers_tied_for_the_last_place_go_by_length_and_then_by_token_ids() -> None:
    model, (states, mask) = decoder(), questions(3)
    answers = [[7, 5, 6, 4, 2], [7, 5, 8, 2], [7, 5, 3, 2], [7, 5, 9, 9, 9, 2]]
    assert rank_answers(model, states, mask, listed(answers), 1).tolist() == [2, 2, 2]
    best = max((1, 2), key=lambda n: score(model, states[0], answers[n], 0.0))
    assert int(rank_answers(model, states, mask, listed(answers), 2)[0]) == best


def test_of_two_equal_answers_the_first_wins() -> None:
    model, (states, mask) = decoder(), questions(3)
    assert rank_answers(model, states, mask, listed([[7, 5, 3, 2]] * 3), 3).tolist() == [0, 0, 0]


def test_states_are_never_repeated_for_the_candidates() -> None:
    model, (states, mask) = decoder(), questions(4)
    rows: list[int] = []
    key = model.bert.encoder.layer[0].crossattention.self.key
    key.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    rank_answers(model, states, mask, listed(texts()), 40, part=10)
    assert rows == [4] * 5, "once for the first token, then once for each part"


def test_the_list_is_sorted_and_remembers_where_each_answer_stood() -> None:
    answers = texts(seed=5)
    found = listed(answers)
    expected = sorted(answers, key=lambda answer: (len(answer), answer))
    rows = zip(found.ids.tolist(), found.lengths.tolist(), strict=True)
    assert [row[:length] for row, length in rows] == [[START, *answer[1:]] for answer in expected]
    assert [answers[number] for number in found.numbers] == expected
    assert len(found) == 40


def test_token_scores_are_the_cross_entropy_with_label_smoothing() -> None:
    logits, targets = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    for smoothing in (0.0, 0.3):
        expected = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
        ).view(3, 5)
        torch.testing.assert_close(token_scores(logits, targets, smoothing), -expected)
        shared = token_scores(logits[:, :1], targets, smoothing)
        torch.testing.assert_close(shared[:, 3:4], token_scores(logits[:, :1], targets[:, 3:4], smoothing))


def test_messages() -> None:
    model, (states, mask) = decoder(), questions(2)
    for k in (0, 5):
        with pytest.raises(
            ValueError,
            match=f"k_test is {k}, but the answer list has 4 answers to choose the candidates from; give 1 to 4",
        ):
            rank_answers(model, states, mask, listed(texts(4)), k)
    empty = torch.zeros(0, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="the answer list is empty; give at least one answer to choose from"):
        AnswerList.of(empty, empty, START)
    ids = torch.tensor([[7, 5, 2], [1, 7, 2]])
    with pytest.raises(
        ValueError,
        match=r"answer 1 has the attention mask \[0, 1, 1\]; give a special token, the answer, an end token, ",
    ):
        AnswerList.of(ids, torch.tensor([[1, 1, 1], [0, 1, 1]]), START)
    with pytest.raises(ValueError, match=r"answer 0 has the attention mask \[1, 0, 0\]; give"):
        AnswerList.of(ids, torch.tensor([[1, 0, 0], [1, 1, 1]]), START)
