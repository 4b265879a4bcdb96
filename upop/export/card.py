"""The model card: what a reader of the directory is told, written from facts alone. The same facts give the same card.

The licence is the user's to choose, since it follows from the licence of the dense model and the data.

Names that come from elsewhere (of the source, of metrics) are escaped: they neither end a table nor become HTML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upop.cost import CostModel, Share
from upop.structure import Currency, Plan

HERE = "path/to/this/directory"
"""What the card calls the directory, which may be moved or uploaded."""
LABELS: dict[Currency, str] = {"params": "parameters", "flops": "FLOPs of one sample"}
UNITS: dict[str, str] = {"head": "attention heads", "head_dim": "head-dim positions", "neuron": "MLP neurons"}
TASKS = {
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
    "AutoModelForVisualQuestionAnswering": "visual-question-answering",
    "AutoModelForImageTextToText": "image-to-text",
    "AutoModelForImageClassification": "image-classification",
}


@dataclass(frozen=True)
class Card:
    """What a card is made of.

    Attributes:
        name: Class or timm architecture of the model.
        cost: Cost of the dense model.
        plan: What it was cut by.
        autos: Auto classes of transformers that load the directory; none for a timm model.
        trust_processor: Whether the processor, too, needs the files beside the weights.
        processor: Whether there is a processor.
        facts: ``source``: hub name or path of the dense model; ``metrics``: those of the compressed model by name,
            ``dense_metrics``: those of the dense one. Anything else is ignored.
    """

    name: str
    cost: CostModel
    plan: Plan
    autos: Sequence[str] = ()
    processor: bool = True
    trust_processor: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The card, in the form that the Hugging Face hub reads: Markdown after a block of metadata."""
        parts = [self._metadata(), self._head(), self._removed(), self._sizes(), self._metrics(), self._loading()]
        return "\n\n".join([*(part for part in parts if part), LICENCE]) + "\n"

    def _metadata(self) -> str:
        source = str(self.facts.get("source", ""))
        tasks = [TASKS[auto] for auto in self.autos if auto in TASKS]
        lines = ["license: other", f"library_name: {'transformers' if self.autos else 'timm'}"]
        lines += [f"pipeline_tag: {tasks[0]}"] if tasks else []
        lines += [f"base_model: {source}"] if _is_hub_name(source) else []
        return "\n".join(["---", *lines, "tags:", "- upop", "- pruning", "- compressed", "---"])

    def _head(self) -> str:
        source = str(self.facts.get("source", ""))
        named = source if _is_hub_name(source) else Path(source).name
        params, left = self.cost.whole("params"), self.cost.remaining(self.plan.kept(), "params")
        dense = f" {_code(named)}" if named else ""
        units = [UNITS[kind] for kind in self.plan.kinds()]
        return (
            f"# {_escaped(self.name)}, compressed\n\nA {_code(self.name)} with {left:,} parameters, "
            f"{left / params:.1%} of the {params:,} of the dense model{dense}. "
            "[upop](https://arxiv.org/abs/2301.13741) removed "
            f"{_listed(units)} from its layers. Nothing is sparse or masked: it runs wherever the dense model does."
        )

    def _removed(self) -> str:
        rows = [_removed_row(share) for share in self.cost.shares(self.plan.kept())]
        return "## What was removed\n\n" + _table(
            ("tower", "units", "in the dense model", "kept", "parameters removed", "of their parameters"), rows
        )

    def _sizes(self) -> str:
        rows = []
        for currency, label in LABELS.items():
            dense, left = self.cost.whole(currency), self.cost.remaining(self.plan.kept(), currency)
            rows.append((label, f"{dense:,}", f"{left:,}", f"{left / dense:.1%}"))
        tokens = ", ".join(f"{count} of {stream}" for stream, count in self.cost.measured.tokens.items())
        return (
            "## Size\n\n"
            + _table(("", "dense", "compressed", "compressed / dense"), rows)
            + f"\n\nTokens of a sample: {tokens}. A multiply-add counts as two FLOPs."
        )

    def _metrics(self) -> str:
        compressed, dense = self.facts.get("metrics") or {}, self.facts.get("dense_metrics") or {}
        names = list(dict.fromkeys([*dense, *compressed]))
        if not names:
            return ""
        rows = [(_escaped(str(name)), _number(dense.get(name)), _number(compressed.get(name))) for name in names]
        return "## Quality\n\n" + _table(("", "dense", "compressed"), rows)

    def _loading(self) -> str:
        if self.autos:
            plain = _transformers_lines(self.processor, self.trust_processor)
            others = [_code(auto) for auto in self.autos if auto != "AutoModel"]
            needs = (
                "With torch and transformers (upop need not be installed; `trust_remote_code` runs `modeling_upop.py`, "
                "which gives the layers their sizes)" + (f", also by {' or '.join(others)}:" if others else ":")
            )
        else:
            plain = f'import sys; sys.path.insert(0, "{HERE}")\nfrom timm_upop import load\nmodel = load()'
            needs = "With torch and timm (upop need not be installed; `timm_upop.py` gives the layers their sizes):"
        ours = f'import upop\n\nmodel, processor = upop.load("{HERE}")'
        return f"## How to load\n\n{needs}\n\n```python\n{plain}\n```\n\nWith upop:\n\n```python\n{ours}\n```"


LICENCE = (
    "## Licence\n\nNot chosen yet: `license: other` above is a placeholder. Put in a licence that those of the dense "
    "model and of the training data allow."
)


def _listed(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    >>> _listed(["heads", "positions", "neurons"])
    'heads, positions and neurons'
    """
    return " and ".join([part for part in (", ".join(words[:-1]), *words[-1:]) if part])


def _removed_row(share: Share) -> tuple[str, ...]:
    units = " x ".join(UNITS[kind] for kind in share.kind.split(" x "))
    part = f"{share.params_removed / share.params:.1%}" if share.params else "-"
    return (share.modality, units, f"{share.units:,}", f"{share.units_kept:,}", f"{share.params_removed:,}", part)


def _transformers_lines(processor: bool, trust: bool) -> str:
    lines = [
        f"from transformers import AutoModel{', AutoProcessor' if processor else ''}",
        "",
        f'model = AutoModel.from_pretrained("{HERE}", trust_remote_code=True)',
    ]
    if processor:
        arguments = ", trust_remote_code=True" if trust else ""
        lines.append(f'processor = AutoProcessor.from_pretrained("{HERE}"{arguments})')
    return "\n".join(lines)


def _is_hub_name(source: str) -> bool:
    """Whether a source can be looked up on the hub, as far as its name tells."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)) and not Path(source).exists()


def _number(value: Any) -> str:  # noqa: ANN401 (whatever a metric is)
    return "-" if value is None else f"{value:,.2f}" if isinstance(value, (int, float)) else _escaped(str(value))


def _escaped(text: str) -> str:
    r"""A text of one line in which Markdown sees nothing but letters; a name such as ``bleu_4`` stays as it is.

    >>> print(_escaped("a|b <i> *c*"))
    a\|b &lt;i&gt; \*c\*
    """
    plain = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", _line(text))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: str) -> str:
    """A text of one line as code, between more backticks than it has in a row.

    >>> print(_code("a"), _code("a`b"))
    `a` `` a`b ``
    """
    line = _line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if "`" not in line else f"{fence} {line} {fence}"


def _line(text: str) -> str:
    """A text without line breaks and without what no file of text may hold."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
