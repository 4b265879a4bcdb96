"""VQA v2 and DAQUAR are found in their files, and what does not fit is refused before a model is built."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.data.pictures import processor
from tests.data.question_files import ANSWERS, annotations_name, asked, image, noted, questions_name, vqa_v2, write
from upop.data import Daquar, VqaV2

SHARED = Path("../shared/data")
TAKES = {"train": ["train2014"], "val": ["val2014"], "test": ["test2015"]}


@pytest.fixture
def files(tmp_path):
    return vqa_v2(tmp_path)


def module(files, **settings):
    return VqaV2(**{**files, **TAKES, "answers_min_count": 1, "num_workers": 0, **settings})


def ids(data, split="train"):
    return [question.question_id for question in data.questions(split)]


def test_the_defaults_are_the_papers(files):
    data = VqaV2(**files)
    assert data.takes == {"train": ["train2014", "val2014"], "val": ["val2014"], "test": ["test2015"]}
    data = VqaV2(**files, answers_min_count=1)
    with pytest.warns(UserWarning, match=r"val takes \['val2014'\], which train takes too"):
        data.check()
    assert ids(data) == list(range(100, 118))


def test_images_may_lie_without_their_folders(files, tmp_path):
    for folder in ("train2014", "val2014", "test2015"):
        for path in (tmp_path / folder).iterdir():
            path.rename(tmp_path / path.name)
        (tmp_path / folder).rmdir()
    data = module(files)
    assert Path(data.questions("val")[0].image) == tmp_path / "COCO_val2014_000000000003.jpg"


def test_files_may_be_gzipped(files, tmp_path):
    for path in tmp_path.glob("*.json"):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert ids(module(files)) == list(range(100, 112))


def test_blip_lists_stand_in_for_official_files(files, tmp_path):
    official = module(files)
    for part, blip in (("train2014", "vqa_train"), ("val2014", "vqa_val"), ("test2015", "vqa_test")):
        split = next(split for split, names in TAKES.items() if names == [part])
        rows = [
            {
                "question_id": q.question_id,
                "question": q.question,
                "image": f"{part}/{Path(q.image).name}",
                "dataset": "vqa",
            }
            | ({"answer": list(q.answers)} if q.answers else {})
            for q in official.questions(split)
        ]
        (tmp_path / f"{blip}.json").write_text(json.dumps(rows))
        (tmp_path / questions_name(part)).unlink()
    found = module(files)
    for split in TAKES:
        pairs = zip(found.questions(split), official.questions(split), strict=True)
        assert all(one[:3] == other[:3] and Path(one.image) == Path(other.image) for one, other in pairs)
    assert found.answers == official.answers


def visual_genome(folder, name="question_answers.json"):
    rows = [{"qa_id": n, "image_id": n, "question": "What?", "answer": "A tree."} for n in range(100, 103)]
    data = [{"id": row["image_id"], "qas": [row]} for row in rows]
    if name == "vg_qa.json":
        data = [
            {
                "question_id": row["qa_id"],
                "question": "What?",
                "answer": "A tree.",
                "image": f"image/{row['image_id']}.jpg",
            }
            for row in rows
        ]
    (folder / name).write_text(json.dumps(data))
    for n in range(100, 103):
        image(folder / "genome" / ("VG_100K", "VG_100K_2")[n % 2] / f"{n}.jpg")


@pytest.mark.parametrize("name", ["question_answers.json", "vg_qa.json"])
def test_visual_genome_is_trained_on_but_gives_no_candidates(files, tmp_path, name):
    visual_genome(tmp_path, name)
    data = module(files, train=["train2014", "vg"], vg_images=str(tmp_path / "genome"), batch_size=15)
    data.set_processor(processor())
    assert ids(data) == [*range(100, 112), 100, 101, 102]  # Visual Genome counts for itself
    assert sorted(data.answers) == sorted(ANSWERS)
    (batch,) = data.train_dataloader()
    weights = [batch["answer_weights"][batch["answer_question"] == row].sum().item() for row in range(15)]
    assert sorted(weights) == pytest.approx([0.2] * 3 + [1.0] * 12)
    with pytest.raises(ValueError, match="a split takes 'vg', but vg_images is not set"):
        module(files, train=["vg"])
    only = module(files, train=["vg"], vg_images=str(tmp_path / "genome"))
    assert only.answers == ["A tree."]


def test_a_limit_takes_the_first_questions_of_all_parts_and_keeps_only_their_images(files):
    data = module(files, train=["train2014", "val2014"], val=["test2015"], train_limit=13, cache_images=True)
    assert ids(data) == list(range(100, 113))
    assert len(module(files, train_limit=2).questions("train").images) == 2


def test_an_answer_list_is_held_against_the_training_answers(files, tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(["two", "red", "cat"]))
    data = module(files, answer_list=str(tmp_path / "answers.json"))
    assert data.answers == ["two", "red", "cat"]
    (tmp_path / "answers.json").write_text(json.dumps(["two", "cat"]))
    message = (
        r"the 2 candidate answers hold 25\.0% of the answers to the training questions, .* made for these questions\?"
    )
    with pytest.raises(ValueError, match=message):
        module(files, answer_list=str(tmp_path / "answers.json")).check()
    with pytest.raises(ValueError, match=r"hold 25\.0% .*; set answers_min_count lower or top_answers higher"):
        module(files, top_answers=1).check()
    with pytest.raises(ValueError, match="zero answers occur at least 9 times in 12 training questions"):
        module(files, answers_min_count=9).check()


def lacks(files, part, annotations):
    """Take the last question, or its annotation, out of a file."""
    path = Path(files["annotations"], annotations_name(part) if annotations else questions_name(part))
    key = "annotations" if annotations else "questions"
    write(path, **{key: json.loads(path.read_text())[key][:-1]})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda files: lacks(files, "val2014", True), r"1 of 6 questions .* have no annotations .* \[117\]"),
        (lambda files: lacks(files, "val2014", False), r"1 of 6 annotations .* have no questions .* \[117\]"),
        (
            lambda files: Path(files["images"], "val2014/COCO_val2014_000000000003.jpg").unlink(),
            r"1 of 5 images are missing under .*\['val2014/COCO_val2014_000000000003\.jpg'\]",
        ),
        (
            lambda files: Path(files["annotations"], annotations_name("train2014")).unlink(),
            r"has no 'v2_mscoco_train2014_annotations\.json' \(nor BLIP's 'vqa_train\.json'\), plain or gzipped",
        ),
        (
            lambda files: Path(files["annotations"], questions_name("test2015")).unlink(),
            r"has no 'v2_OpenEnded_mscoco_test2015_questions\.json' \(nor BLIP's 'vqa_test\.json'\)",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(files, broken, message):
    broken(files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module(files).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train": ["test2015"]},
            r"train takes 'test2015', but 4 of its 4 questions have no answers; train on parts with",
        ),
        ({"train": ["train2015"]}, r"train takes 'train2015'; the data set has .*; did you mean 'train2014'\?"),
        ({"test": ["test2015", "test-dev2015"]}, r"test takes \['test2015', 'test-dev2015'\], which share 2 questions"),
        ({"answers_min_count": 0}, "answers_min_count is 0; set it to 1 or more"),
        ({"top_answers": 0}, "top_answers is 0; set it to 1 or more"),
    ],
)
def test_parts_and_settings_that_do_not_fit_are_refused(files, tmp_path, settings, message):
    write(tmp_path / questions_name("test-dev2015"), questions=[asked(18), asked(19)])
    with pytest.raises(ValueError, match=message):
        module(files, **settings).check()


def test_images_are_looked_for_where_they_are_said_to_be(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image directory at 'nowhere'; images takes the directory"):
        module({**files, "images": "nowhere"}).check()
    with pytest.raises(
        FileNotFoundError, match=r"'nowhere' has no 'v2_OpenEnded.*' and no 'v2_mscoco.*; its JSON files are \[\]"
    ):
        module({**files, "annotations": "nowhere"}).check()


def test_daquar_names_its_own_files(tmp_path):
    for part, numbers in (("train", range(8)), ("test", range(8, 12))):
        write(tmp_path / f"daquar_{part}_questions.json", questions=[asked(n) for n in numbers])
        annotations = [noted(n, answers=["chair"] * 10) for n in numbers]
        path = write(tmp_path / "plain.json", annotations=annotations)
        (tmp_path / f"daquar_{part}_annotations.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    for number in range(1, 6):
        image(tmp_path / "images" / f"image{number}.jpg")
    data = Daquar(images=str(tmp_path), annotations=str(tmp_path))
    assert data.answers == ["chair"]
    assert ids(data, "val") == ids(data, "test") == [108, 109, 110, 111]
    assert data.questions("train").weighted(0) == {0: pytest.approx(1.0)}


@pytest.mark.skipif(not (SHARED / "daquar").is_dir(), reason=f"needs {SHARED / 'daquar'}")
def test_the_real_daquar():
    folder = SHARED / "daquar"
    data = Daquar(images=str(folder), annotations=str(folder / "vqa_style"), batch_size=8, num_workers=0)
    data.set_processor(processor())
    assert [len(data.questions(split)) for split in ("train", "test")] == [6795, 5673]
    assert data.answers[0] == "2"
    batch = next(iter(data.train_dataloader()))
    assert batch["answer_weights"].tolist() == pytest.approx([1.0] * 8)


@pytest.mark.skipif(not (SHARED / "vqa_v2_subset").is_dir(), reason=f"needs {SHARED / 'vqa_v2_subset'}")
def test_the_real_images_of_vqa_v2():
    folder, part = SHARED / "vqa_v2_subset", ["train2014"]
    data = VqaV2(
        images=str(folder), annotations=str(folder), train=part, val=part, test=part, answers_min_count=1,
        batch_size=16, num_workers=0, verify=True,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="which train takes too"):
        data.check()
    data.set_processor(processor())
    assert len(data.questions("val")) == 134
    assert data.answers[:2] == ["yes", "no"]
    batch = next(iter(data.train_dataloader()))
    for row in range(16):
        assert batch["answer_weights"][batch["answer_question"] == row].sum() == pytest.approx(1.0)
    assert all(one <= other for one, other in pairwise(batch["answer_question"].tolist()))
