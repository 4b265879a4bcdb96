"""Questions and answers are read from all layouts, and whatever a file gets wrong is named."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.data.question_files import asked, noted, write
from upop.data.vqa_files import read_blip_questions, read_official, read_visual_genome

SUBSET = Path("../shared/data/vqa_v2_subset")
IMAGE = "val2014/COCO_val2014_{:012d}.jpg"


def official(folder, questions=None, annotations=None):
    ours = write(folder / "q.json", questions=[asked(n) for n in range(4)] if questions is None else questions)
    theirs = write(folder / "a.json", annotations=[noted(n) for n in range(4)] if annotations is None else annotations)
    return ours, theirs


def test_official_files_belong_together(tmp_path):
    found = read_official(*official(tmp_path), IMAGE)
    assert [question.question_id for question in found] == [100, 101, 102, 103]
    first = found[0]
    assert first.question == "Is, number 0?"
    assert first.image == "val2014/COCO_val2014_000000000001.jpg"
    assert Counter(first.answers) == {"red": 7, "two": 2, "yes": 1}
    assert (first.question_type, first.answer_type) == ("what is", "other")


def test_answers_follow_their_question_whatever_the_order(tmp_path):
    straight = read_official(*official(tmp_path), IMAGE)
    assert read_official(*official(tmp_path, annotations=[noted(n) for n in (2, 0, 3, 1)]), IMAGE)[:] == straight[:]


def test_gzipped_files_and_parts_without_answers(tmp_path):
    ours, _ = official(tmp_path)
    zipped = tmp_path / "q.json.gz"
    zipped.write_bytes(gzip.compress(ours.read_bytes()))
    found = read_official(zipped, None, IMAGE)
    assert len(found) == 4
    assert all(question.answers == () for question in found)


def test_annotations_may_leave_out_types_and_images(tmp_path):
    bare = [{key: noted(n)[key] for key in ("question_id", "answers")} for n in range(4)]
    found = read_official(*official(tmp_path, annotations=bare), IMAGE)
    assert {(row.question_type, row.answer_type, len(row.answers)) for row in found} == {("", "", 10)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"questions": [asked(n) for n in range(9)]},
            r"5 of 9 questions in '.*q\.json' have no annotations in '.*a\.json', .* question ids \[104, 105, 106\]",
        ),
        (
            {"annotations": [noted(n) for n in range(9)]},
            r"5 of 9 annotations in '.*a\.json' have no questions in '.*q\.json', .* question ids \[104, 105, 106\]",
        ),
        ({"questions": []}, r"q\.json' has no questions; download it again"),
        ({"annotations": []}, r"a\.json' has no annotations; download it again"),
        (
            {"questions": [asked(1), asked(0), asked(0)]},
            r"q\.json' has 1 question ids more than once, .* \[100\]",
        ),
        ({"annotations": [noted(2)] * 2}, r"a\.json' has 1 question ids more than once, the first of them \[102\]"),
        ({"questions": [3]}, "entry 0 of 'questions' is the number 3; expected an object with 'question_id'"),
        ({"questions": [{**asked(0), "question": 7}]}, "'question' is the number 7; expected text"),
        ({"questions": [{**asked(0), "image_id": "1"}]}, "'image_id' is text; expected a whole number"),
        ({"annotations": [noted(0, answers=[])]}, "entry 0 of 'annotations' has no answers: 'answers' is empty"),
        ({"annotations": [{**noted(0), "answers": "red"}]}, "'answers' is text; expected a list of answers"),
        ({"annotations": [{**noted(0), "answers": [{"a": 1}]}]}, r"'answer' is missing \(keys are \['a'\]\)"),
        (
            {"annotations": [{**noted(0), "answers": [{"answer_id": 1, "answer": 5}]}]},
            "is the number 5; expected an",
        ),
        (
            {"annotations": [noted(0), noted(1), noted(2), {**noted(3), "image_id": 9}]},
            r"question 103 is about image 4 in '.*q\.json', but about image 9 in '.*a\.json'",
        ),
    ],
)
def test_official_files_that_are_wrong_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        read_official(*official(tmp_path, **given), IMAGE)


def test_files_that_were_exchanged_are_recognised(tmp_path):
    ours, theirs = official(tmp_path)
    with pytest.raises(ValueError, match=r"a\.json' is not a file of questions: .*; it is a file of annotations"):
        read_official(theirs, ours, IMAGE)
    with pytest.raises(ValueError, match=r"q\.json' is not a file of annotations: .*; it is a file of questions"):
        read_official(ours, ours, IMAGE)
    ours.write_text("[]")
    with pytest.raises(ValueError, match="is not a file of questions: expected an object with a list 'questions'"):
        read_official(ours, None, IMAGE)


def entry(number, **more):
    return {"question_id": number, "question": "who?", "image": f"val2014/{number}.jpg", "dataset": "vqa", **more}


def listed(folder, rows):
    (folder / "vqa_val.json").write_text(json.dumps(rows))
    return folder / "vqa_val.json"


def test_blip_lists_have_ten_answers_one_or_none(tmp_path):
    ten = read_blip_questions(listed(tmp_path, [entry(1, answer=["a"] * 9 + ["b"])]))
    assert ten[0].answers == ("a",) * 9 + ("b",)
    assert list(ten.weighted(0).values()) == pytest.approx([0.9, 0.1])
    one = read_blip_questions(listed(tmp_path, [entry(1, answer="a"), entry(2, answer="b")]), mass=0.2)
    assert [list(one.weighted(number).values()) for number in (0, 1)] == [pytest.approx([0.2])] * 2
    none = read_blip_questions(listed(tmp_path, [entry(1), entry(2)]))
    assert [(question.question_id, question.answers, question.image) for question in none] == [
        (1, (), "val2014/1.jpg"), (2, (), "val2014/2.jpg"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"questions": []},
            r"is not one of BLIP's lists: expected a list of entries, found an object",
        ),
        ([], "has no questions; download it again"),
        ([entry(1), entry(2, answer="x")], "1 of 2 questions have no 'answer', the first of them in entry 0"),
        ([entry(1, answer="x"), entry(1, answer="y")], r"has 1 question ids more than once, the first of them \[1\]"),
        ([entry(1, answer=[])], "entry 0 has no answers: 'answer' is empty"),
        ([entry(1, answer=3)], "'answer' is the number 3; expected a list of answers"),
        ([{"question": "who?"}], r"entry 0: 'image' is missing"),
        ([entry(1, image="../../etc/passwd")], "leaves the image root"),
        (["x"], "entry 0 is text; expected an object with 'image'"),
    ],
)
def test_blip_lists_that_are_wrong_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_blip_questions(listed(tmp_path, rows))


def genome(folder, data):
    (folder / "question_answers.json").write_text(json.dumps(data))
    return folder / "question_answers.json"


def test_visual_genome_has_one_answer_of_a_fifth_of_the_weight(tmp_path):
    asked_about = {
        "qa_id": 7,
        "image_id": 2,
        "question": "Who?",
        "answer": "A man.",
        "a_objects": [],
        "q_objects": [{}],
    }
    found = read_visual_genome(genome(tmp_path, [{"id": 1, "qas": []}, {"id": 2, "qas": [asked_about]}]))
    assert found[0] == (7, "Who?", ("A man.",), "2.jpg", "", "")
    assert list(found.weighted(0).values()) == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "is not Visual Genome's question_answers.json: expected a list of entries, found an object"),
        ([{"id": 1}], r"entry 0 is an object with keys \['id'\]; expected an object with a list 'qas'"),
        ([{"qas": []}], "has no questions"),
        ([{"qas": [{"qa_id": 1, "image_id": 1, "question": "?"}]}], "entry 0: 'answer' is null; expected text"),
        ([{"qas": [{"question": "?"}]}], r"entry 0: 'qa_id' is missing"),
        ([{"qas": [{"qa_id": 1, "image_id": 1, "question": "?", "answer": "a"}] * 2}], "question ids more than once"),
    ],
)
def test_a_visual_genome_that_is_wrong_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        read_visual_genome(genome(tmp_path, data))


@pytest.mark.skipif(not SUBSET.is_dir(), reason=f"needs {SUBSET}")
def test_sixty_thousand_real_questions():
    folder = SUBSET / "nlp1_2017_60k"
    for part, count in (("train", 48_061), ("valid", 8_977), ("test", 2_962)):
        names = (f"vqa_{kind}_{part}.json.gz" for kind in ("questions", "annotations"))
        found = read_official(*(folder / name for name in names), "{}.jpg")
        assert len(found) == count
        assert set(found.counts.tolist()) == {10}
