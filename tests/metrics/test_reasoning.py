import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.metrics import nlvr_accuracy, sentence_group

NLVR = Path(__file__).parents[2] / "../shared/data/nlvr1"

examples = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abcde")), min_size=1, max_size=30)


@given(examples)
def test_brute_force(rows):
    predictions, labels, groups = zip(*rows, strict=True)
    right = [row for row in rows if row[0] == row[1]]
    spoilt = {row[2] for row in rows if row[0] != row[1]}
    consistent = set(groups) - spoilt
    assert nlvr_accuracy(predictions, labels, groups) == pytest.approx(
        {"accuracy": 100 * len(right) / len(rows), "consistency": 100 * len(consistent) / len(set(groups))}
    )


def test_consistency_needs_every_example_of_a_statement():
    labels, groups = [True, False, True, False], ["a", "a", "b", "b"]
    assert nlvr_accuracy(labels, labels, groups) == {"accuracy": 100.0, "consistency": 100.0}
    assert nlvr_accuracy([True] * 4, labels, groups) == {"accuracy": 50.0, "consistency": 0.0}
    assert nlvr_accuracy([True] * 4, labels, [0, 1, 2, 3]) == {"accuracy": 50.0, "consistency": 50.0}


def test_groups_of_nlvr2_are_those_of_the_official_script():
    """It blanks the pair: all pairs of a set with one sentence number belong together."""
    identifiers = [
        f"{split}-{number}-{pair}-{sentence}"
        for split in ("dev", "test1")
        for number in (0, 85, 850)
        for pair in range(4)
        for sentence in range(2)
    ]
    official = [identifier.split("-")[:2] + identifier.split("-")[3:] for identifier in identifiers]
    for one, ours in zip(official, map(sentence_group, identifiers), strict=True):
        for other, theirs in zip(official, map(sentence_group, identifiers), strict=True):
            assert (one == other) == (ours == theirs)


@pytest.mark.parametrize(
    "identifier", ["dev-850-0", "dev-850-0-1-2", "850", "", "dev-850-0-img0.png", "dev-850-0-1.jpg", "850-x"]
)
def test_other_identifiers_are_refused(identifier):
    with pytest.raises(ValueError, match=f"identifier {re.escape(repr(identifier))} is not one of NLVR2"):
        sentence_group(identifier)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="there are 2 predictions, 3 labels and 3 groups; give one of each"):
        nlvr_accuracy([True, False], [True, False, True], ["a", "a", "b"])
    with pytest.raises(ValueError, match="there are 0 predictions, 0 labels and 0 groups"):
        nlvr_accuracy([], [], [])


@pytest.mark.skipif(not NLVR.is_dir(), reason=f"needs {NLVR}")
@pytest.mark.parametrize(("seed", "right"), [(0, 0.5), (1, 0.95)])
def test_the_official_nlvr_script_says_the_same(seed, right, tmp_path):
    generator = random.Random(seed)
    annotations = NLVR / "dev/dev.json"
    rows = [json.loads(line) for line in annotations.read_text().splitlines()]
    images, predictions, labels = [], [], []
    for row in rows:
        label = row["label"].lower() == "true"
        for permutation in range(6):
            images.append(f"dev-{row['identifier']}-{permutation}.png")
            labels.append(label)
            predictions.append(label if generator.random() < right else not label)
    lines = [f"{image},{str(guess).lower()}" for image, guess in zip(images, predictions, strict=True)]
    (tmp_path / "predictions.csv").write_text("\n".join(lines))
    command = [sys.executable, str(NLVR / "metrics_images.py"), str(tmp_path / "predictions.csv"), str(annotations)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(\w+)=([\d.]+)", said)
    assert [name for name, _ in found] == ["precision", "consistency"]
    ours = nlvr_accuracy(predictions, labels, [sentence_group(image) for image in images])
    assert list(ours.values()) == pytest.approx([100 * float(value) for _, value in found])
    assert 0 < ours["consistency"] < ours["accuracy"] or seed == 0
