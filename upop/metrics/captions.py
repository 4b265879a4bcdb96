"""Caption scores: BLEU, METEOR, ROUGE-L, CIDEr and SPICE by pycocoevalcap, after the official PTB tokenisation.

The order is that of ``COCOEvalCap`` of COCO's caption evaluation (Chen et al. 2015,
https://arxiv.org/abs/1504.00325): all captions are split and lower-cased by Stanford's PTBTokenizer, punctuation goes,
then each scorer sees the same tokens.

Everything is in percent as papers print it, CIDEr too: its 1.33 is printed 133. CIDEr weighs words by how few images
mention them, so it depends on the set of images, and is 0 for a single one.

What is needed: ``pip install 'upop[captioning]'`` and Java 8 or newer. Without Java nothing can be scored, as there is
no other official tokenisation. SPICE needs models that pycocoevalcap fetches from the network when it is first used;
here that never happens by itself: SPICE is left out, with a warning, until they are there.

pycocoevalcap's own tokeniser takes a caption with an odd line break for two, and gives every later caption to the wrong
image; here all white space becomes one blank first, and the lines are counted.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from upop.messages import closest
from upop.metrics.results import check_complete, write_rows

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice")
Tokens = dict[int, list[str]]


def caption_scores(
    candidates: Mapping[Any, str], references: Mapping[Any, Sequence[str]], metrics: Sequence[str] | None = None
) -> dict[str, float]:
    """Scores of one caption per image against those that people wrote, in percent.

    Takes about 10 s for METEOR's dictionaries, whatever the number of captions.

    Args:
        candidates: Caption by image id; may be empty, which scores 0 wherever a mean over images is taken.
        references: At least one caption by image id, of the same images.
        metrics: Some of :data:`METRICS`. By default all that can be computed here, with a warning about the others.

    Returns:
        The scores by the names in ``metrics``, in their order.

    Raises:
        ValueError: If the images do not match, one has no reference, or a metric is unknown.
        TypeError: If a caption is not a string.
        FileNotFoundError: If pycocoevalcap or Java is missing, or what a metric needs that was asked for.
        OSError: If a Java program fails.
    """
    chosen = check_metrics(metrics)
    _check_captions(candidates, references)
    # pycocoevalcap wants sortable ids that JSON can hold, so the images are numbered.
    owners = [number for number, captions in enumerate(references.values()) for _ in captions]
    lines = tokenise([candidates[image] for image in references] + [c for group in references.values() for c in group])
    guesses: Tokens = {number: [line] for number, line in enumerate(lines[: len(references)])}
    truths: Tokens = {number: [] for number in guesses}
    for number, line in zip(owners, lines[len(references) :], strict=True):
        truths[number].append(line)
    scores: dict[str, float] = {}
    for names, scorer in _SCORERS:
        if set(names) & set(chosen):
            try:
                scores |= dict(zip(names, scorer(truths, guesses), strict=True))
            except OSError as error:
                if metrics is not None or names != ("spice",):
                    raise
                warnings.warn(f"spice is left out: {error}", stacklevel=2)
    return {name: 100.0 * float(scores[name]) for name in chosen if name in scores}


def check_metrics(metrics: Sequence[str] | None = None) -> tuple[str, ...]:
    """The metrics that :func:`caption_scores` computes on this machine; a check to run before anything takes long.

    Args:
        metrics: Some of :data:`METRICS`. By default all that can run, with a warning, once, about the others.

    Raises:
        ValueError: If a metric is unknown, or none is given.
        FileNotFoundError: If pycocoevalcap or Java is missing, or what a metric needs that was asked for.
    """
    wanted = METRICS if metrics is None else tuple(metrics)
    unknown = [name for name in wanted if name not in METRICS]
    if unknown or not wanted:
        hint = closest(unknown[0], METRICS) if unknown else ""
        raise ValueError(f"caption metrics are {list(wanted)!r}; choose from {list(METRICS)!r}{hint}")
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise FileNotFoundError(
            "captions are scored by pycocoevalcap, which is not installed; pip install 'upop[captioning]'"
        )
    if shutil.which("java") is None:
        raise FileNotFoundError(
            "captions are split by Stanford's tokeniser, without which no official score exists, and there is no java "
            "on the PATH; install a Java runtime, 8 or newer (apt-get install default-jre-headless)"
        )
    missing = [str(path) for path in _spice_models() if not path.is_file()]
    if "spice" not in wanted or not missing:
        return wanted
    message = (
        f"spice needs Stanford's CoreNLP 3.6.0, and {missing[0]!r} is missing; with a network, fetch it once with: "
        f"python -m pycocoevalcap.spice.get_stanford_models"
    )
    if metrics is not None:
        raise FileNotFoundError(message)
    _warn_once(f"{message}; computed without it: {', '.join(METRICS[:-1])}")
    return METRICS[:-1]


def tokenise(captions: Sequence[str]) -> list[str]:
    """Captions as the scorers see them: tokens in lower case between blanks, without punctuation, in the same order.

    The program and the options are those of pycocoevalcap's ``PTBTokenizer``.

    Raises:
        OSError: If the Java program fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer as official

    jar = Path(official.__file__).with_name(official.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "".join(" ".join(caption.split()) + "\n" for caption in captions)
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    lines = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(lines) != len(captions):
        last = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise OSError(
            f"the java tokeniser gave back {len(lines)} of {len(captions)} captions, "
            f"with exit code {done.returncode}: {last}"
        )
    # Not split(): a token such as a telephone number may hold blanks of another kind.
    return [" ".join(token for token in line.split(" ") if token not in official.PUNCTUATIONS) for line in lines]


def result_file(captions: Mapping[Any, str]) -> list[dict[str, Any]]:
    """What COCO's evaluation takes: a list of ``{"image_id": 1, "caption": "a cat"}``.

    Raises:
        TypeError: If a caption is not a string.

    >>> result_file({1: "a cat"})
    [{'image_id': 1, 'caption': 'a cat'}]
    """
    _check_strings(captions)
    return [{"image_id": image, "caption": caption} for image, caption in captions.items()]


def write_results(path: str | Path, captions: Mapping[Any, str], images: Iterable[Hashable]) -> None:
    """Write the file that COCO's evaluation takes, atomically, in the order of the images.

    Args:
        path: JSON file to write.
        captions: Caption by image id, a number or a string.
        images: Ids of all images of the split; servers refuse files that lack one.

    Raises:
        ValueError: If captions and images do not match.
        TypeError: If a caption is not a string.
    """
    images = list(images)
    check_complete(captions, images, "image")
    write_rows(path, result_file({image: captions[image] for image in images}))


def _bleu(truths: Tokens, guesses: Tokens) -> list[float]:
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(4).compute_score(truths, guesses, verbose=0)[0]


def _meteor(truths: Tokens, guesses: Tokens) -> list[float]:
    with _meteor_process() as meteor:
        return [meteor.compute_score(truths, guesses)[0]]


def _rouge(truths: Tokens, guesses: Tokens) -> list[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    return [Rouge().compute_score(truths, guesses)[0]]


def _cider(truths: Tokens, guesses: Tokens) -> list[float]:
    from pycocoevalcap.cider.cider import Cider

    return [Cider().compute_score(truths, guesses)[0]]


def _spice(truths: Tokens, guesses: Tokens) -> list[float]:
    from pycocoevalcap.spice import spice

    usual = spice.TEMP_DIR
    with tempfile.TemporaryDirectory(prefix="upop-spice-") as folder:
        spice.TEMP_DIR = folder  # its own lies in the installed package, and keeps the files of a program that failed
        try:
            return [spice.Spice().compute_score(truths, guesses)[0]]
        except subprocess.CalledProcessError as error:
            raise OSError(
                f"spice's java program failed with exit code {error.returncode}; it needs 8 GB of memory, and is known "
                f"to fail with Java 16 and newer: put a Java 8 or 11 first on the PATH"
            ) from error
        finally:
            spice.TEMP_DIR = usual


_SCORERS: tuple[tuple[tuple[str, ...], Callable[[Tokens, Tokens], list[float]]], ...] = (
    (METRICS[:4], _bleu),
    (("meteor",), _meteor),
    (("rouge_l",), _rouge),
    (("cider",), _cider),
    (("spice",), _spice),
)


@contextmanager
def _meteor_process() -> Iterator[Any]:
    """A METEOR whose Java program ends with the block, come what may."""
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    process = meteor.meteor_p
    try:
        yield meteor
    except (OSError, ValueError) as error:  # a broken pipe, or an empty line where a number belongs
        process.kill()
        last = process.stderr.read().decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise OSError(f"meteor's java program stopped: {last or error}; it needs 2 GB of memory") from error
    finally:
        if meteor.lock.locked():
            meteor.lock.release()  # an interrupted score keeps it, and then its __del__ waits for it for ever
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):  # what was not yet written cannot be
                pipe.close()


def _spice_models() -> list[Path]:
    """The files that SPICE would fetch."""
    from pycocoevalcap.spice import get_stanford_models as models

    folder = Path(models.SPICEDIR, models.SPICELIB)
    return [folder / f"{models.JAR}.jar", folder / f"{models.JAR}-models.jar"]


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _check_captions(candidates: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    """Refuse captions that cannot be compared."""
    check_complete(candidates, references, "image")
    _check_strings(candidates)
    for image, captions in references.items():
        if isinstance(captions, str) or not captions:
            raise ValueError(f"image {image!r} has the references {captions!r}; give a list of at least 1 caption")
        for caption in captions:
            _check_strings({image: caption})


def _check_strings(captions: Mapping[Any, str]) -> None:
    for image, caption in captions.items():
        if not isinstance(caption, str):
            raise TypeError(f"image {image!r} has the caption {caption!r}; give a string")
