import gzip
import json
import random
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.metrics import accuracy_by_question_type, vqa_accuracy
from upop.metrics.vqa import CONTRACTIONS, accuracy, normalise, result_file, write_results

DATA = Path(__file__).parents[2] / "../shared/data"
VQA = DATA / "vqa_v2_subset"
FILES = [VQA / "v2_mscoco_train2014_annotations.json"]
FILES += [VQA / f"nlp1_2017_60k/vqa_annotations_{split}.json.gz" for split in ("train", "valid", "test")]

# The table of the official vqaEval.py, a row for each word: as found, as it becomes.
OFFICIAL = """
aint ain't | arent aren't | cant can't | couldve could've | couldnt couldn't | couldn'tve couldn't've
couldnt've couldn't've | didnt didn't | doesnt doesn't | dont don't | hadnt hadn't | hadnt've hadn't've
hadn'tve hadn't've | hasnt hasn't | havent haven't | hed he'd | hed've he'd've | he'dve he'd've | hes he's
howd how'd | howll how'll | hows how's | Id've I'd've | I'dve I'd've | Im I'm | Ive I've | isnt isn't | itd it'd
itd've it'd've | it'dve it'd've | itll it'll | let's let's | maam ma'am | mightnt mightn't | mightnt've mightn't've
mightn'tve mightn't've | mightve might've | mustnt mustn't | mustve must've | neednt needn't | notve not've
oclock o'clock | oughtnt oughtn't | ow's'at 'ow's'at | 'ows'at 'ow's'at | 'ow'sat 'ow's'at | shant shan't
shed've she'd've | she'dve she'd've | she's she's | shouldve should've | shouldnt shouldn't
shouldnt've shouldn't've | shouldn'tve shouldn't've | somebody'd somebodyd | somebodyd've somebody'd've
somebody'dve somebody'd've | somebodyll somebody'll | somebodys somebody's | someoned someone'd
someoned've someone'd've | someone'dve someone'd've | someonell someone'll | someones someone's
somethingd something'd | somethingd've something'd've | something'dve something'd've | somethingll something'll
thats that's | thered there'd | thered've there'd've | there'dve there'd've | therere there're | theres there's
theyd they'd | theyd've they'd've | they'dve they'd've | theyll they'll | theyre they're | theyve they've
twas 'twas | wasnt wasn't | wed've we'd've | we'dve we'd've | weve we've | werent weren't | whatll what'll
whatre what're | whats what's | whatve what've | whens when's | whered where'd | wheres where's | whereve where've
whod who'd | whod've who'd've | who'dve who'd've | wholl who'll | whos who's | whove who've | whyll why'll
whyre why're | whys why's | wont won't | wouldve would've | wouldnt wouldn't | wouldnt've wouldn't've
wouldn'tve wouldn't've | yall y'all | yall'll y'all'll | y'allll y'all'll | yall'd've y'all'd've
y'alld've y'all'd've | y'all'dve y'all'd've | youd you'd | youd've you'd've | you'dve you'd've | youll you'll
youre you're | youve you've
"""
TABLE = dict(row.split() for line in OFFICIAL.strip().splitlines() for row in line.split(" | "))
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]


@cache
def reference(answer):
    """The published rules, one character and one word at a time."""
    text = "".join(" " if letter in "\n\t" else letter for letter in answer).strip()
    triples = zip(text, text[1:], text[2:], strict=False)
    glued = any(a.isdecimal() and b == "," and c.isdecimal() for a, b, c in triples)
    beside_blank = {mark for mark in MARKS for a, b in pairwise(text) if {a, b} == {mark, " "}}
    out = []
    for letter in text:
        if letter in MARKS:
            out += [] if glued or letter in beside_blank else [" "]
        else:
            out.append(letter)
    kept, gone = "", 0
    for place, letter in enumerate(out):
        if letter == "." and not (place + 1 < len(out) and out[place + 1].isdecimal()) and gone < 32:
            gone += 1
        else:
            kept += letter
    words = []
    for word in kept.lower().split():
        number = NUMBERS.get(word, word)
        if number not in ("a", "an", "the"):
            words.append(TABLE.get(number, number))
    return " ".join(words)


def reference_accuracy(prediction, answers):
    """Leave each person out in turn."""
    one_line = [" ".join(re.split("[\n\t]", text)).strip() for text in [prediction, *answers]]
    if any(text != one_line[1] for text in one_line[2:]):
        one_line = [reference(text) for text in one_line]
    prediction, answers = one_line[0], one_line[1:]
    ways = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        ways.append(min(1, len([other for other in others if other == prediction]) / 3))
    return 100 * sum(ways) / len(ways)


def question(number, answers, kind="other", what="what is"):
    return SimpleNamespace(question_id=number, answers=tuple(answers), answer_type=kind, question_type=what)


def records(path):
    """Questions of an annotation file, of which a few lack their types, and the answer that most people gave."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        annotations = json.load(file)["annotations"]
    found = [
        question(
            row["question_id"],
            [given["answer"] for given in row["answers"]],
            row.get("answer_type"),
            row.get("question_type"),
        )
        for row in annotations
    ]
    return found, [Counter(asked.answers).most_common(1)[0][0] for asked in found]


def test_contractions_are_the_official_ones():
    """But for the entries that change nothing, and those in capitals, which no lower-case word can meet."""
    reachable = {word: fixed for word, fixed in TABLE.items() if word != fixed and word == word.lower()}
    assert reachable == CONTRACTIONS
    assert len(TABLE) - len(reachable) == 6


@pytest.mark.parametrize(
    ("answer", "expected"),
    {
        "line breaks and tabs": ("red\nand\tblue\n", "red and blue"),
        "lower case": ("New York", "new york"),
        "white space": ("  two   words ", "2 words"),
        "mark between letters becomes a blank": ("black/white", "black white"),
        "hyphen": ("t-shirt", "t shirt"),
        "mark beside a blank vanishes": ("yes, please", "yes please"),
        "a mark beside a blank vanishes everywhere": ("a-b - c-d", "ab cd"),
        "but another mark does not": ("x/y - z", "x y z"),
        "mark at an end becomes a blank": ("(yes)", "yes"),
        "comma in a number": ("1,000", "1000"),
        "comma in a number takes all marks along": ("1,000 t-shirts/caps", "1000 tshirtscaps"),
        "comma before a letter": ("1,b", "1 b"),
        "every mark": (';/[]"{}()=+\\_-><@`,?!x', "x"),
        "colon and apostrophe stay": ("12:30 o'clock", "12:30 o'clock"),
        "other signs stay": ("50% & $5 *#~^|", "50% & $5 *#~^|"),
        "period": ("St. Louis.", "st louis"),
        "period inside a word": ("u.s.a", "usa"),
        "period before a digit": ("3.5 .5", "3.5 .5"),
        "period after a digit": ("no. 3.", "no 3"),
        "period before a blank that was a mark": ("3.-5", "3 5"),
        "no more than 32 periods": ("." * 40, "." * 8),
        "number words": (" ".join(NUMBERS), "0 0 1 2 3 4 5 6 7 8 9 10"),
        "not inside a word": ("someone eleven", "someone eleven"),
        "articles": ("The cat, a dog and an owl", "cat dog and owl"),
        "nothing but an article": ("the", ""),
        "contraction": ("dont know", "don't know"),
        "contraction that is already right": ("don't", "don't"),
        "contraction with one of two": ("couldnt've", "couldn't've"),
        "contraction in capitals": ("CANT", "can't"),
        "capital I": ("Im", "im"),
        "the one that loses it": ("somebody'd", "somebodyd"),
        "empty": ("", ""),
        "other scripts": ("Café \uff13,\uff15", "café \uff13\uff15"),
    }.values(),
)
def test_rules(answer, expected):
    assert normalise(answer) == reference(answer) == expected


@given(st.lists(st.sampled_from([*MARKS, *" .\n\tabAI015'٣:", "one", " the ", "dont", "Id've", "1,0"])).map("".join))
def test_normalise_follows_the_rules_for_any_text(answer):
    assert normalise(answer) == reference(answer)


@pytest.mark.parametrize(("same", "expected"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)])
def test_votes(same, expected):
    assert accuracy("yes", ["yes"] * same + ["no"] * (10 - same)) == pytest.approx(expected)


def test_nothing_is_normalised_where_all_agree():
    assert accuracy("Two", ["2"] * 10) == 0.0
    assert accuracy("two", ["two "] * 9 + ["two\n"]) == 100.0
    assert accuracy("Two", ["2"] * 9 + ["two"]) == 100.0
    assert accuracy("Yes", ["yes"] * 10) == 0.0
    assert accuracy("yes.", ["yes"] * 9 + ["no"]) == 100.0


@given(st.lists(st.sampled_from(["yes", "Yes.", "no", "a no", "1", "one"]), min_size=4, max_size=12), st.data())
def test_leave_one_out_over_any_number_of_people(answers, draw):
    prediction = draw.draw(st.sampled_from(answers))
    assert accuracy(prediction, answers) == pytest.approx(reference_accuracy(prediction, answers))


def test_means_by_type():
    questions = [
        question(1, ["yes"] * 10, "yes/no", "is the"),
        question(2, ["no"] * 8 + ["yes"] * 2, "yes/no", "is the"),
        question(3, ["2"] * 3 + ["3"] * 7, "number", "how many"),
        question(4, ["red"] * 10),
    ]
    predictions = {4: "blue", 3: "two", 2: "yes", 1: "yes"}
    assert vqa_accuracy(predictions, iter(questions)) == pytest.approx(
        {"accuracy": 62.5, "accuracy_yes_no": 80.0, "accuracy_number": 90.0, "accuracy_other": 0.0}
    )
    assert accuracy_by_question_type(predictions, questions) == pytest.approx(
        {"how many": 90.0, "is the": 80.0, "what is": 0.0}
    )
    untyped = question(5, ["red"] * 10, "", None)
    assert vqa_accuracy({5: "red"}, [untyped]) == {"accuracy": 100.0}
    assert accuracy_by_question_type({5: "red"}, [untyped]) == {}


def test_refuses():
    ten = [question(1, ["yes"] * 10), question(2, ["no"] * 10)]
    with pytest.raises(ValueError, match=r"1 of 2 questions have no result, the first ones \[2\]"):
        vqa_accuracy({1: "yes"}, ten)
    with pytest.raises(ValueError, match="there is a result for question 3, which is none of the 2 questions"):
        vqa_accuracy({1: "yes", 2: "no", 3: "no"}, ten)
    with pytest.raises(ValueError, match="question 1 is listed twice"):
        vqa_accuracy({1: "yes"}, ten[:1] * 2)
    with pytest.raises(ValueError, match=r"1 of 2 questions have fewer than 4 answers, the first ones \[2\]; where"):
        accuracy_by_question_type({1: "yes", 2: "no"}, [ten[0], question(2, [])])
    with pytest.raises(ValueError, match=r"there are 1 answers, \['yes'\]; give at least 4, and repeat one"):
        accuracy("yes", ["yes"])


def test_results_are_what_the_server_takes(tmp_path):
    questions = [question(7, []), question(3, [])]
    write_results(tmp_path / "out/results.json", {3: "no", 7: 'a "b"'}, questions)
    expected = [{"question_id": 7, "answer": 'a "b"'}, {"question_id": 3, "answer": "no"}]
    assert json.loads((tmp_path / "out/results.json").read_text()) == expected
    assert result_file({7: 'a "b"', 3: "no"}) == expected
    with pytest.raises(ValueError, match=r"1 of 2 questions have no result, the first ones \[3\]"):
        write_results(tmp_path / "other.json", {7: "no"}, questions)
    with pytest.raises(TypeError, match="question '7' is answered with 'no'; give a string for each whole number"):
        result_file({"7": "no"})
    with pytest.raises(TypeError, match="question 7 is answered with 3"):
        write_results(tmp_path / "other.json", {7: 3, 3: "no"}, questions)
    assert not (tmp_path / "other.json").exists()


PERTURBED = {
    "as it is": str,
    "capitals": str.upper,
    "article": "the {}".format,
    "period": "{}.".format,
    "spelt out": lambda answer: {number: word for word, number in NUMBERS.items()}.get(answer, answer),
    "quoted": '"{}"\n'.format,
    "no apostrophe": lambda answer: answer.replace("'", ""),
    "wrong": "not {}".format,
}


@pytest.mark.skipif(not VQA.is_dir(), reason=f"needs {VQA}")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_records(path):
    """Every record with the commonest answer, someone's or another question's, twisted in some way."""
    questions, common = records(path)
    generator = random.Random(0)
    predictions = {}
    for asked, answer, other in zip(questions, common, common[1:] + common[:1], strict=True):
        answer = generator.choice([answer, generator.choice(asked.answers), other])
        predictions[asked.question_id] = generator.choice(list(PERTURBED.values()))(answer)
    scores = [reference_accuracy(predictions[asked.question_id], list(asked.answers)) for asked in questions]
    expected = {"accuracy": sum(scores) / len(scores)}
    for kind, name in (("yes/no", "yes_no"), ("number", "number"), ("other", "other")):
        mine = [score for asked, score in zip(questions, scores, strict=True) if asked.answer_type == kind]
        expected[f"accuracy_{name}"] = sum(mine) / len(mine)
    assert vqa_accuracy(predictions, questions) == pytest.approx(expected)
    best = vqa_accuracy(dict(zip([asked.question_id for asked in questions], common, strict=True)), questions)
    assert 80 < best["accuracy"] < 100


@pytest.mark.skipif(not (DATA / "daquar").is_dir(), reason=f"needs {DATA / 'daquar'}")
def test_one_answer_repeated_ten_times():
    path = next((DATA / "daquar/vqa_style").glob("*annotations*.json*"))
    questions, common = records(path)
    right = {asked.question_id: answer for asked, answer in zip(questions, common, strict=True)}
    assert set(vqa_accuracy(right, questions).values()) == {100.0}
    wrong = {number: f"{answer}s" for number, answer in right.items()}
    assert set(vqa_accuracy(wrong, questions).values()) == {0.0}
