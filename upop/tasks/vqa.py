"""Visual question answering with BLIP: a decoder learns every answer that people gave, and ranks a list or generates.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086 (its fine-tuning on VQA), which UPop, Shi et al.,
ICML 2023, https://arxiv.org/abs/2301.13741, compresses; neither uses momentum targets here. Two deviations: generation
heeds the padding of the questions, where the authors' attends to it, so that an answer depended on the other questions
of its batch; and ties in the ranking do not depend on the order of the answer list.

Shapes: ``B`` questions of a batch, ``L`` tokens of a question, ``D`` width, ``A`` answers of all questions of a batch
in a row, ``M`` tokens of an answer, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from upop.metrics.gathering import gather_by_index
from upop.metrics.results import check_writable
from upop.metrics.vqa import vqa_accuracy, write_results
from upop.tasks.answer_ranking import AnswerList, check_candidates, rank_answers
from upop.tasks.stochastic_depth import add_stochastic_depth, check_rate
from upop.tasks.taught import TaughtTask
from upop.tasks.text_decoder import check_tokens, freeze_unread_

GENERATION = {"num_beams": 3, "max_length": 10, "min_length": 1}
"""How the authors generate answers; lengths in tokens, the start token counted."""


class VisualQuestionAnswering(TaughtTask):
    """Train and evaluate BLIP's answerer: a text encoder reads the question with the image, a decoder answers.

    Args:
        checkpoint: Dense model to start from: a Hugging Face directory or hub name of a ``BlipForQuestionAnswering``.
            Or of a ``BlipForImageTextRetrieval``, such as ``Salesforce/blip-itm-base-coco``, whose towers the
            finetuning then starts with: the decoder begins as its text encoder.
        from_scratch: Take only the architecture and the processor of ``checkpoint``, with random weights.
        compile: Compile the image encoder and the text encoder with ``torch.compile``; the first steps take longer.
        drop_path: Probability at which a sample skips the last vision layer in training, growing linearly from 0 at the
            first (stochastic depth); the authors train with 0.1.
        label_smoothing: Share of the target that is spread over the whole vocabulary in training, in [0, 1).
        inference: ``rank`` takes the most probable answer of the data's answer list, as the authors evaluate;
            ``generate`` lets the decoder write one (3 beams, at most 8 tokens).
        k_test: Answers of the list that are scored in full for each question, those whose first token is the most
            probable. As many as the list has rank all of it.
        rank_smoothing: Label smoothing of the score that ranks, in [0, 1). The authors rank with the training loss,
            smoothing included, which costs an answer something for each token; 0 ranks by plain likelihood.
        result_file: Where to write the answers to the test split, as JSON that the test server takes. Each evaluation
            of a run replaces it, so the last model's stay.
    """

    def __init__(
        self,
        checkpoint: str,
        from_scratch: bool = False,
        compile: bool = False,
        drop_path: float = 0.0,
        label_smoothing: float = 0.1,
        inference: Literal["rank", "generate"] = "rank",
        k_test: int = 128,
        rank_smoothing: float = 0.1,
        result_file: str | None = None,
    ) -> None:
        super().__init__(checkpoint, from_scratch, compile)
        for name, share in (("label_smoothing", label_smoothing), ("rank_smoothing", rank_smoothing)):
            if not 0.0 <= share < 1.0:
                raise ValueError(f"{name} is {share!r}; it is a share of the target, in [0, 1)")
        if inference not in ("rank", "generate"):
            raise ValueError(f"inference is {inference!r}; give 'rank' or 'generate'")
        if k_test < 1:
            raise ValueError(f"k_test is {k_test!r}; give the number of answers to score for each question, 1 or more")
        check_rate(drop_path)
        self.drop_path = drop_path
        self.label_smoothing, self.rank_smoothing = label_smoothing, rank_smoothing
        self.inference, self.k_test, self.result_file = inference, k_test, result_file
        self._skips: list[RemovableHandle] = []
        self._candidates: list[AnswerList] = []
        self._answers: dict[int, str] = {}

    def start_from(self, model: nn.Module) -> nn.Module:
        """The model itself, or an answerer that is made of a BLIP for retrieval."""
        from upop.families import growing  # with all of Hugging Face's BLIP, which other tasks need not wait for

        return growing.answering(model) if growing.can_grow(model) else model

    def adopt(self, model: nn.Module, processor: Any) -> None:  # noqa: ANN401 (any Hugging Face processor)
        """Take an answerer, dense or cut, and its processor.

        Raises:
            ValueError: If ``model`` is no BLIP answerer, its decoder cannot attend to its text encoder, or it begins or
                ends an answer with a token that cannot be.
        """
        from transformers import BlipForQuestionAnswering

        if not isinstance(model, BlipForQuestionAnswering):
            raise ValueError(
                f"{type(model).__name__} answers no questions; visual question answering takes a "
                "BlipForQuestionAnswering, such as 'Salesforce/blip-vqa-base'"
            )
        text: Any = model.config.text_config
        attended = model.text_decoder.bert.encoder.layer[0].crossattention.self.key.in_features
        if attended != text.hidden_size:
            raise ValueError(
                f"the decoder attends to states of width {attended}, but its text encoder gives {text.hidden_size}; "
                "give vision_config and text_config the same hidden_size"
            )
        check_tokens(text, processor)
        super().adopt(model, processor)
        freeze_unread_(model.text_decoder)
        layers: Any = model.vision_model.encoder.layers
        for handle in self._skips:
            handle.remove()
        self._skips = add_stochastic_depth([[layer.self_attn, layer.mlp] for layer in layers], self.drop_path)

    def towers(self) -> list[nn.Module]:
        """Both encoders; the decoder's length changes with every batch of answers."""
        return [self.model.vision_model, self.model.text_encoder]

    def question_states(self, model: Any, batch: dict[str, Tensor]) -> Tensor:  # noqa: ANN401 (Hugging Face's model)
        """What the text encoder makes of each question and its image, ``(B, L, D)``.

        Args:
            model: The answerer or its teacher.
            batch: ``pixel_values``, and ``input_ids`` and ``attention_mask`` ``(B, L)`` of the questions.
        """
        images = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
        found = model.text_encoder(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], encoder_hidden_states=images
        )
        states: Tensor = found.last_hidden_state
        return states

    def answer_logits(self, model: Any, batch: dict[str, Tensor]) -> Tensor:  # noqa: ANN401
        """Logits of the token after each token of each answer, ``(A, M, V)`` in fp32.

        Args:
            model: The answerer or its teacher.
            batch: As of :meth:`question_states`, with ``answer_ids`` and ``answer_mask`` ``(A, M)`` as the tokenizer
                gives them (the decoder's start token replaces the first), and ``answer_question (A,)``.
        """
        rows = batch["answer_question"]
        tokens = batch["answer_ids"].clone()
        tokens[:, 0] = model.decoder_start_token_id
        logits: Tensor = model.text_decoder(
            input_ids=tokens,
            attention_mask=batch["answer_mask"],
            encoder_hidden_states=self.question_states(model, batch)[rows],
            encoder_attention_mask=batch["attention_mask"][rows],
        ).logits
        return logits.float()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Weighted cross-entropy of the answers, summed over their tokens, per question, in any mode.

        Args:
            batch: As of :meth:`answer_logits`, and ``answer_weights (A,)``.
        """
        return self._loss(self.answer_logits(self.model, batch), batch)

    def _loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        targets = batch["answer_ids"][:, 1:]
        losses = F.cross_entropy(
            logits[:, :-1].transpose(1, 2), targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return _per_question(losses, batch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch, plus distillation where it is on."""
        with self.recording(self.model) as states:
            logits = self.answer_logits(self.model, batch)
        loss = self._loss(logits, batch)
        if self.distillation.on:
            masks = {"text_encoder": batch["attention_mask"], "text_decoder": batch["answer_mask"]}

            def divergence(target: Tensor) -> Tensor:
                ours, theirs = (found[:, :-1].log_softmax(2) for found in (logits, target))
                return _per_question(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(2), batch)

            loss = loss + self.taught_loss(states, lambda model: self.answer_logits(model, batch), divergence, masks)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def preflight(self) -> None:
        """Refuse a result file that cannot be written."""
        check_writable(self.result_file)

    def check_data(self, data: Any) -> None:  # noqa: ANN401 (a data module)
        """Refuse an answer list that is too short for ``k_test``, and a test whose outcome would be lost.

        Raises:
            ValueError: If it is.
        """
        if self.inference == "rank":
            check_candidates(self.k_test, len(data.answers))
        if self.result_file is None and not _annotated(data.questions("test")):
            raise ValueError(
                "the questions of split 'test' have no answers to score against; set model.init_args.result_file to "
                "write the model's answers for the test server"
            )

    def on_fit_start(self) -> None:
        """Check the answer list before the training, not after it, where nobody has."""
        self.check_data(self.trainer.datamodule)
        super().on_fit_start()

    def _start_evaluation(self) -> None:
        self.check_data(self.trainer.datamodule)
        self._answers = {}
        if self.inference == "rank":
            tokens = self.trainer.datamodule.answer_tokens()
            start = self.model.decoder_start_token_id
            self._candidates = [AnswerList.of(tokens["input_ids"], tokens["attention_mask"], start).to(self.device)]

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        answers = self.ranked(batch) if self.inference == "rank" else self.generated(batch)
        self._answers.update(zip(batch["index"].tolist(), answers, strict=True))

    def ranked(self, batch: dict[str, Tensor]) -> list[str]:
        """The best answer of the list to each question; the list is that of the present evaluation."""
        states = self.question_states(self.model, batch)
        found = rank_answers(
            self.model.text_decoder,
            states,
            batch["attention_mask"],
            self._candidates[0],
            self.k_test,
            self.rank_smoothing,
        )
        answers: list[str] = self.trainer.datamodule.answers
        return [answers[number] for number in found.tolist()]

    def generated(self, batch: dict[str, Tensor]) -> list[str]:
        """The answer that the decoder writes to each question."""
        texts: list[str] = self.processor.tokenizer.batch_decode(
            self.generate(batch)[:, 1:],  # the start token may be in no vocabulary
            skip_special_tokens=True,
        )
        return [text.strip() for text in texts]

    @torch.no_grad()
    def generate(self, batch: dict[str, Tensor]) -> Tensor:
        """Tokens of an answer to each question, found by beam search: start token, answer, end token, padding."""
        text = self.model.config.text_config
        states = self.question_states(self.model, batch)
        start = torch.full((len(states), 1), self.model.decoder_start_token_id, device=states.device)
        found: Tensor = self.model.text_decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=states,
            encoder_attention_mask=batch["attention_mask"],
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            do_sample=False,
            **GENERATION,
        )
        return found

    def _report(self, split: Literal["val", "test"]) -> None:
        questions = self.trainer.datamodule.questions(split)
        answers = {questions[index].question_id: text for index, text in gather_by_index(self._answers).items()}
        self._candidates, self._answers = [], {}
        if split == "test" and self.result_file is not None and self.trainer.is_global_zero:
            write_results(self.result_file, answers, questions)
        if _annotated(questions):
            self._log_scores(split, vqa_accuracy(answers, questions))


def _per_question(values: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Values ``(A, M - 1)`` of the tokens to predict: summed over each answer, weighted, divided by the questions."""
    valid = batch["answer_mask"][:, 1:].bool()
    per_answer = values.masked_fill(~valid, 0.0).sum(1)
    return (batch["answer_weights"] * per_answer).sum() / len(batch["input_ids"])


def _annotated(questions: Any) -> bool:  # noqa: ANN401 (any sequence of questions)
    """Whether a split has answers to score against; a test server keeps them."""
    return len(questions) > 0 and all(question.answers for question in questions)
