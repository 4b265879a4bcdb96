import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from upop.metrics import caption_scores, captions
from upop.metrics.captions import METRICS, check_metrics, result_file, tokenise, write_results

COCO = Path(__file__).parents[2] / "../shared/data/coco_mini/annotations/captions_val2017_all_files.json"
QUICK = METRICS[:4] + METRICS[5:7]  # all but METEOR, whose dictionaries take 10 s to load
PLAIN = METRICS[:-1]
JAVA = shutil.which("java")

needs_scorer = pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap")
needs_java = pytest.mark.skipif(JAVA is None, reason="needs a java runtime on the PATH")
needs_coco = pytest.mark.skipif(not COCO.is_file(), reason=f"needs {COCO}")


@pytest.fixture(autouse=True)
def _warnings_afresh():
    captions._warn_once.cache_clear()


@pytest.fixture(scope="module")
def coco():
    """The first caption of each image as the candidate, and the others as its references."""
    groups = {}
    for row in json.loads(COCO.read_text())["annotations"]:
        groups.setdefault(row["image_id"], []).append(row["caption"])
    assert len(groups) == 159
    return {image: group[0] for image, group in groups.items()}, {image: group[1:] for image, group in groups.items()}


def official(candidates, references, scorers):
    """What COCOEvalCap does: its own tokeniser on COCO's structures, then the scorers."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truths = PTBTokenizer().tokenize({i: [{"caption": c} for c in group] for i, group in references.items()})
    guesses = PTBTokenizer().tokenize({i: [{"caption": candidates[i]}] for i in references})
    found = []
    for scorer in scorers:
        score, _ = scorer().compute_score(truths, guesses)
        found += score if isinstance(score, list) else [score]
    return [100 * score for score in found]


def stand_in(folder, body, monkeypatch):
    """Put a ``java`` first on the PATH whose own cases come before those of the real one."""
    program = folder / "bin/java"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\ncase "$*" in\n{body}\n*) exec {JAVA} "$@" ;;\nesac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


@pytest.fixture
def spice_home(tmp_path, monkeypatch):
    """A pycocoevalcap that believes in its SPICE models, and keeps nothing in its own folder."""
    from pycocoevalcap.spice import get_stanford_models as models
    from pycocoevalcap.spice import spice

    (tmp_path / "spice/lib").mkdir(parents=True)
    for end in ("", "-models"):
        (tmp_path / f"spice/lib/{models.JAR}{end}.jar").touch()
    monkeypatch.setattr(models, "SPICEDIR", str(tmp_path / "spice"))
    monkeypatch.setattr(spice, "CACHE_DIR", str(tmp_path / "cache"))
    return spice


@needs_scorer
@needs_java
@needs_coco
def test_tokens_are_those_of_the_official_tokeniser(coco):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = [line for group in coco[1].values() for line in group]
    lines += [
        "A café -- très bon: \"quoted\" (x), it's 5:30; don't!",
        "",
        "a ||| b",
        "1 1/2 cups, call (212) 555-1212.",
        "Ends.",
    ]
    expected = PTBTokenizer().tokenize({i: [{"caption": line}] for i, line in enumerate(lines)})
    assert tokenise(lines) == [expected[i][0] for i in range(len(lines))]


@needs_scorer
@needs_java
def test_one_line_in_is_one_line_out():
    """The official tokeniser would make two captions of some of these, and shift all that follow."""
    odd = ["a\rcat", "a\u2028cat", "a\x0bcat\x0c", "a\x85cat", "a\n\ncat", "\ta  cat\r\n", "", " ", "the end", ""]
    assert tokenise(odd) == ["a cat"] * 6 + ["", "", "the end", ""]
    assert tokenise([]) == []


@needs_scorer
@needs_java
@needs_coco
def test_scores_of_real_captions_are_the_official_ones(coco, capfd):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    got = caption_scores(*coco, QUICK)
    assert capfd.readouterr() == ("", "")
    assert list(got) == list(QUICK)
    assert list(got.values()) == pytest.approx(official(*coco, [Bleu, Rouge, Cider]), rel=1e-9)
    assert 20 < got["bleu_4"] < 40
    assert 60 < got["cider"] < 120  # people among themselves, on images whose words are rarer than in all of COCO


@pytest.mark.slow
@needs_scorer
@needs_java
@needs_coco
def test_meteor_of_real_captions_is_the_official_one(coco):
    from pycocoevalcap.meteor.meteor import Meteor

    got = caption_scores(*coco, ["meteor", "cider"])
    assert list(got) == ["meteor", "cider"]
    assert got["meteor"] == pytest.approx(official(*coco, [Meteor])[0], rel=1e-9)


@needs_scorer
@needs_java
def test_scores_by_hand():
    candidates = {"x": "The cat sat on the mat."}
    references = {"x": ("the cat is on the mat", "dogs")}
    # 5 of 6 words, 3 of 5 pairs, and 5 words in common order of 6 both ways
    got = caption_scores(candidates, references, ["rouge_l", "bleu_2", "bleu_1", "cider"])
    expected = {"rouge_l": 500 / 6, "bleu_2": 100 * (5 / 6 * 3 / 5) ** 0.5, "bleu_1": 500 / 6, "cider": 0.0}
    assert got == pytest.approx(expected)
    assert list(got) == list(expected)
    same = dict(enumerate(["a red bus stops here", "two dogs run on grass"]))
    perfect = caption_scores(same, {number: [text] for number, text in same.items()}, ["bleu_4", "rouge_l", "cider"])
    assert perfect == pytest.approx({"bleu_4": 100, "rouge_l": 100, "cider": 1000})
    nothing = caption_scores(dict.fromkeys(same, ""), {number: [text] for number, text in same.items()}, ["cider"])
    assert nothing == {"cider": 0.0}


@needs_scorer
@needs_java
def test_order_and_kind_of_ids_do_not_matter():
    candidates = {2: "a dog runs", "b": "a cat", 1: "the big tree"}
    references = {1: ["a tree"], 2: ["the dog ran", "dog"], "b": ["one cat sits"]}
    backwards = dict(reversed(references.items()))
    assert caption_scores(candidates, references, QUICK) == pytest.approx(caption_scores(candidates, backwards, QUICK))


@needs_scorer
@needs_java
def test_meteor_and_its_process(monkeypatch):
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        # the empty one is a miss; the figure is what meteor-1.5.jar says to "a dog runs" for "a dog", and to "" for "a"
        got = caption_scores({1: "", 2: "a dog runs"}, {1: ["a cat sits"], 2: ["a dog"]}, ["meteor"])
    assert got == pytest.approx({"meteor": 18.37191007778175})
    assert len(started) == 2  # tokeniser and METEOR
    assert all(process.returncode is not None for process in started)
    assert all(
        pipe is None or pipe.closed for process in started for pipe in (process.stdin, process.stdout, process.stderr)
    )


@needs_scorer
@needs_java
@pytest.mark.timeout(120)
def test_a_meteor_that_dies_is_named_and_does_not_hang(tmp_path, monkeypatch):
    stand_in(tmp_path, '*meteor*) echo "could not reserve enough space" >&2; exit 1 ;;', monkeypatch)
    message = "meteor's java program stopped: could not reserve enough space; it needs 2 GB of memory"
    with pytest.raises(OSError, match=message):
        caption_scores({1: "a"}, {1: ["a"]}, ["cider", "meteor"])


@needs_scorer
@needs_java
def test_a_tokeniser_that_fails_is_named(tmp_path, monkeypatch):
    stand_in(tmp_path, '*PTBTokenizer*) echo "one line"; echo "no such class" >&2; exit 3 ;;', monkeypatch)
    message = "the java tokeniser gave back 1 of 2 captions, with exit code 3: no such class"
    with pytest.raises(OSError, match=message):
        caption_scores({1: "a"}, {1: ["a"]}, ["cider"])


@needs_scorer
def test_without_java_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for metrics in (None, ["bleu_4"]):
        with pytest.raises(FileNotFoundError, match="there is no java on the PATH; install a Java runtime, 8 or newer"):
            caption_scores({1: "a"}, {1: ["a"]}, metrics)


def test_without_pycocoevalcap_nothing_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    message = "captions are scored by pycocoevalcap, which is not installed; pip install 'upop[captioning]'"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        check_metrics()


@needs_scorer
@needs_java
def test_without_its_models_spice_is_left_out_with_one_warning_and_no_download(tmp_path, monkeypatch):
    from pycocoevalcap.spice import get_stanford_models as models

    monkeypatch.setattr(models, "SPICEDIR", str(tmp_path))
    monkeypatch.setattr(models, "urlretrieve", lambda *_, **__: pytest.fail("went to the network"))
    with pytest.warns(UserWarning, match="computed without it: bleu_1, .*, cider") as caught:
        assert check_metrics() == check_metrics() == PLAIN
    assert len(caught) == 1
    assert check_metrics(["cider", "bleu_1"]) == ("cider", "bleu_1")
    message = f"spice needs Stanford's CoreNLP 3.6.0, and '{tmp_path}/lib/{models.JAR}.jar' is missing; with a network,"
    for call in (check_metrics, lambda metrics: caption_scores({1: "a"}, {1: ["a"]}, metrics)):
        with pytest.raises(FileNotFoundError, match=re.escape(message)):
            call(["cider", "spice"])


SPICE = """
import json, sys
rows = json.load(open(sys.argv[-7]))
found = [{"image_id": row["image_id"], "scores": {"All": {"f": 0.25 * row["image_id"]}}} for row in rows]
assert [row["refs"] for row in rows] == [["a cat", "cats"], ["a dog"]], rows
json.dump(found, open(sys.argv[-3], "w"))
"""


@needs_scorer
@needs_java
def test_spice_runs_where_its_models_are_and_leaves_no_file_behind(tmp_path, monkeypatch, spice_home):
    """With a stand-in for the Java program, whose 450 MB of models are not here."""
    (tmp_path / "spice.py").write_text(SPICE)
    stand_in(tmp_path, f'*spice-1.0.jar*) exec {sys.executable} {tmp_path}/spice.py "$@" ;;', monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert check_metrics() == METRICS
    got = caption_scores({7: "A cat", 5: "A dog."}, {7: ["A cat", "Cats!"], 5: ["a dog"]}, ["spice"])
    assert got == {"spice": 12.5}
    assert list((tmp_path / "temporary").iterdir()) == []
    assert spice_home.TEMP_DIR == "tmp"


@needs_scorer
@needs_java
def test_a_spice_that_fails_is_left_out_unless_it_was_asked_for(tmp_path, monkeypatch, spice_home):
    stand_in(
        tmp_path, "*spice-1.0.jar*) exit 1 ;;\n*meteor*) while read line; do echo 0.5; echo 0.5; done ;;", monkeypatch
    )
    given = {1: "a"}, {1: ["a"]}
    with pytest.raises(OSError, match="spice's java program failed with exit code 1; it needs 8 GB of memory, and is"):
        caption_scores(*given, ["bleu_1", "spice"])
    with pytest.warns(UserWarning, match="spice is left out: spice's java program failed with exit code 1"):
        got = caption_scores(*given)
    assert tuple(got) == PLAIN
    assert spice_home.TEMP_DIR == "tmp"


@needs_scorer
@needs_java
@pytest.mark.parametrize(
    ("candidates", "references", "error", "message"),
    [
        ({}, {}, ValueError, "no image was given; give at least 1"),
        ({1: "a"}, {1: ["a"], 2: ["b"]}, ValueError, "1 of 2 images have no result, the first ones [2]"),
        ({1: "a", 3: "c"}, {1: ["a"]}, ValueError, "there is a result for image 3, which is none of the 1 images"),
        ({1: "a"}, {1: []}, ValueError, "image 1 has the references []; give a list of at least 1 caption"),
        ({1: "a"}, {1: "a"}, ValueError, "image 1 has the references 'a'; give a list of at least 1 caption"),
        ({1: None}, {1: ["a"]}, TypeError, "image 1 has the caption None; give a string"),
        ({1: "a"}, {1: ["a", 5]}, TypeError, "image 1 has the caption 5; give a string"),
    ],
)
def test_captions_that_do_not_fit_are_refused(candidates, references, error, message):
    with pytest.raises(error, match=re.escape(message)):
        caption_scores(candidates, references, ["cider"])


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match=r"caption metrics are \['cidre'\]; choose from .*; did you mean 'cider'\?"):
        check_metrics(["cidre"])
    with pytest.raises(ValueError, match=r"caption metrics are \[\]; choose from \['bleu_1', "):
        caption_scores({1: "a"}, {1: ["a"]}, [])


def test_results_are_what_coco_takes(tmp_path):
    write_results(tmp_path / "out/results.json", {3: "a cat", 7: 'a "dog"'}, iter([7, 3]))
    expected = [{"image_id": 7, "caption": 'a "dog"'}, {"image_id": 3, "caption": "a cat"}]
    assert json.loads((tmp_path / "out/results.json").read_text()) == expected
    assert result_file({7: 'a "dog"', 3: "a cat"}) == expected
    with pytest.raises(ValueError, match=r"1 of 2 images have no result, the first ones \[7\]"):
        write_results(tmp_path / "other.json", {3: "a cat"}, [3, 7])
    with pytest.raises(ValueError, match="image 3 is listed twice; give each image an id of its own"):
        write_results(tmp_path / "other.json", {3: "a cat"}, [3, 3])
    with pytest.raises(TypeError, match="image 3 has the caption 4; give a string"):
        write_results(tmp_path / "other.json", {3: 4}, [3])
    assert not (tmp_path / "other.json").exists()
