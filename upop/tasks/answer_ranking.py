"""The most probable answer of a list, for a batch of questions at once.

Every question is scored against the ``k`` answers whose first token its decoder finds most probable. Its candidates
stand side by side in one sequence, where each sees the start token and itself only: the states of the question, and the
keys and values that cross-attention makes of them, are never repeated, and neither are the image's. Candidates go
through the decoder shortest first, in parts, so that short answers are hardly padded.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, and the authors' ``rank_answer``. Unlike theirs,
ties (all answers with the same first token tie for a place among the ``k``) do not depend on the order of the list: the
answer of fewest tokens wins, then the one with the smallest token ids.

Shapes: ``B`` questions, ``L`` tokens of a question, ``D`` width, ``N`` answers of the list, ``A`` tokens of an answer
with the special ones, ``V`` tokens of the vocabulary, ``C`` candidates in a part, ``T`` tokens that each puts in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnswerList:
    """Answers to choose from as token ids, the shortest first; build it with :meth:`of`.

    Attributes:
        ids: Start token, answer, end token, then padding, ``(N, A)``.
        lengths: Tokens of each answer without padding, ``(N,)``, ascending.
        numbers: Where each answer stands in the list that was given, ``(N,)``.
    """

    ids: Tensor
    lengths: Tensor
    numbers: Tensor

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor, start: int) -> AnswerList:
        """Sort answers as a tokenizer gives them.

        Args:
            input_ids: Special token, answer, end token, then padding, ``(N, A)``.
            attention_mask: 1 for a token, 0 for padding, ``(N, A)``.
            start: The decoder's start token, which takes the place of the first.

        Raises:
            ValueError: If there is no answer, or one has fewer than two tokens or is padded on the left.
        """
        if not len(input_ids):
            raise ValueError("the answer list is empty; give at least one answer to choose from")
        lengths = attention_mask.sum(1)
        places = torch.arange(attention_mask.shape[1], device=lengths.device)
        wrong = torch.nonzero((lengths < 2) | ((places < lengths[:, None]) != attention_mask.bool()).any(1)).flatten()
        if len(wrong):
            raise ValueError(
                f"answer {int(wrong[0])} has the attention mask {attention_mask[wrong[0]].tolist()!r}; give a special "
                "token, the answer, an end token, and padding on the right"
            )
        ids = input_ids.clone()
        ids[:, 0] = start
        rows = zip(lengths.tolist(), ids.tolist(), strict=True)
        keys = [(length, row[:length]) for length, row in rows]
        order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), device=ids.device)
        return cls(ids[order], lengths[order], order)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> AnswerList:
        """The list on ``device``."""
        return AnswerList(self.ids.to(device), self.lengths.to(device), self.numbers.to(device))


@torch.no_grad()
def rank_answers(
    decoder: Any,  # noqa: ANN401 (Hugging Face's decoder, dense or cut)
    states: Tensor,
    mask: Tensor,
    answers: AnswerList,
    k: int,
    smoothing: float = 0.0,
    part: int = 32,
) -> Tensor:
    """Number of the best answer to each question, in the order in which the list was given, ``(B,)``.

    Args:
        decoder: A ``BlipTextLMHeadModel``.
        states: States of the questions, ``(B, L, D)``.
        mask: Their valid tokens, ``(B, L)``.
        answers: Answers to choose from, on the device of ``states``.
        k: Candidates to score in full, 1 to ``N``.
        smoothing: Label smoothing of the score, as :func:`token_scores` has it.
        part: Candidates that go through the decoder at a time. The result does not depend on it; logits take
            ``B * part * T * V`` numbers.

    Raises:
        ValueError: If ``k`` is not within 1 and ``N``.
    """
    check_candidates(k, len(answers))
    start = answers.ids[:1, :1].expand(len(states), 1)
    logits = decoder(input_ids=start, encoder_hidden_states=states, encoder_attention_mask=mask).logits[:, 0].float()
    first = answers.ids[:, 1]  # (N,)
    # A stable sort: among equals the shorter answer comes first, on every device.
    chosen = logits[:, first].sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values  # (B, k)
    scores = [
        _sequence_scores(decoder, states, mask, answers, numbers, smoothing) for numbers in chosen.split(part, dim=1)
    ]
    total = torch.cat(scores, dim=1) + token_scores(logits[:, None], first[chosen], smoothing)
    best = total.argmax(dim=1, keepdim=True)
    return answers.numbers[chosen.gather(1, best).squeeze(1)]


def check_candidates(k: int, answers: int) -> None:
    """Refuse a number of candidates that a list of ``answers`` answers does not have.

    Raises:
        ValueError: If ``k`` is not within 1 and ``answers``.
    """
    if not 1 <= k <= answers:
        raise ValueError(
            f"k_test is {k!r}, but the answer list has {answers} answers to choose the candidates from; "
            f"give 1 to {answers}"
        )


def token_scores(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Log-probability of each target, the mean over the vocabulary mixed in with weight ``smoothing``.

    This is the negative cross-entropy with label smoothing, for logits that are shared by many targets.

    Args:
        logits: ``(..., V)`` in fp32.
        targets: ``(...)``; dimensions of size 1 in ``logits`` count for all of them.
        smoothing: In [0, 1).
    """
    wanted = logits.expand(*targets.shape, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    score = wanted if not smoothing else (1.0 - smoothing) * wanted + smoothing * logits.mean(-1)
    return score - logits.logsumexp(-1)


def _sequence_scores(
    decoder: Any,  # noqa: ANN401
    states: Tensor,
    mask: Tensor,
    answers: AnswerList,
    numbers: Tensor,
    smoothing: float,
) -> Tensor:
    """Score of every token of some candidates but the first, summed, ``(B, C)``, for answers ``numbers (B, C)``."""
    lengths = answers.lengths[numbers]
    longest = int(lengths.max())
    ids = answers.ids[numbers, :longest]  # (B, C, T + 2)
    inputs, targets = ids[..., 1:-1], ids[..., 2:]  # (B, C, T) each
    rows, candidates, tokens = inputs.shape
    if not tokens:
        return states.new_zeros(rows, candidates, dtype=torch.float32)
    places = torch.arange(1, tokens + 1, device=ids.device).repeat(candidates)
    logits = decoder(
        input_ids=torch.cat([ids[:, 0, :1], inputs.flatten(1)], dim=1),
        position_ids=torch.cat([places.new_zeros(1), places])[None],
        attention_mask=_side_by_side(candidates, tokens, states).expand(rows, -1, -1, -1),
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
    ).logits[:, 1:]
    scores = token_scores(logits.float().view(rows, candidates, tokens, -1), targets, smoothing)
    valid = torch.arange(2, longest, device=ids.device) < lengths[..., None]  # (B, C, T)
    return (scores * valid).sum(-1)


def _side_by_side(candidates: int, tokens: int, like: Tensor) -> Tensor:
    """Additive mask with which the start token sees itself, and a candidate the start token and its own past.

    Returns:
        ``(1, 1, 1 + C * T, 1 + C * T)``, 0 where a row may look, the most negative number elsewhere.
    """
    own = torch.ones(tokens, tokens, device=like.device).tril()
    seen = torch.block_diag(torch.ones(1, 1, device=like.device), *[own] * candidates)
    seen[:, 0] = 1
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill_(seen == 0, torch.finfo(like.dtype).min)[None, None]
