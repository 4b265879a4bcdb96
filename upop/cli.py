"""``upop <verb>``: the command line. The only module that may import everything.

The verbs and their help need nothing but the standard library; torch and Lightning are imported when a verb runs.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from upop import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from jsonargparse import Namespace
    from lightning.pytorch.cli import LightningArgumentParser

    from upop.runs import Recipe

VERBS = {
    "fit": "finetune, search, cut, retrain and export, from where the run directory stands",
    "finetune": "train the dense model on the task",
    "search": "learn which units the task can spare, write plan.json, and cut",
    "retrain": "train the cut model and export it",
    "test": "evaluate a dense, masked or compressed model (--checkpoint DIR, --plan PLAN)",
    "report": "write one HTML page of finished runs (RUN_DIR ...); several are compared",
    "inspect": "show what can be cut in a model or a recipe's model, before any training",
    "import": "make a model directory of a BLIP checkpoint in its authors' format (FILE.pth --like MODEL --to DIR)",
}
UNKNOWN_KEY = re.compile(
    r"does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)"
)
UNKNOWN_CLASS = re.compile(r"has no attribute '(\w+)'")
UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (?P<errors>.*?)"
    r"(?: Given value type: .*? Given value: (?P<given>.*))?$"
)
IN_WORKER = re.compile(r"Caught \w+ in DataLoader worker process .*\n\w+: (?P<error>.*)", re.DOTALL)
CHATTER = (
    "💡 Tip",
    "GPU available",
    "TPU available",
    "Loading `train_dataloader` to estimate",
    "Using bfloat16",
    "Using 16bit",
)
"""Beginnings of Lightning's messages, one per phase and more, that tell a user of upop nothing."""
HARMLESS = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own use of torch
    r".*distributed\.nn\.functional\.all_gather",  # the same
    r"Found \d+ module\(s\) in eval mode",  # the momentum encoders, which stay in it
    r"Checkpoint directory .* exists and is not empty",  # where a run goes on
)
"""Patterns of warnings about what is meant to be so, or is not ours."""
PEER_GONE = re.compile(r"Connection (closed by|reset by) peer|Connection refused")
DESCRIPTION = "Compress vision-language transformers by structure: a checkpoint goes in, a smaller one comes out."


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb. Errors of the user end with one line and exit code 2; ``--debug`` shows the traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    options = _verbs().parse_args(arguments[:1])
    try:
        _run(options.verb, arguments[1:])
    except KeyboardInterrupt:
        print("\nupop: stopped; run the same command again to go on where it stood", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, RuntimeError, argparse.ArgumentError) as error:
        if debug or (isinstance(error, RuntimeError) and not PEER_GONE.search(str(error))):
            raise
        if isinstance(error, RuntimeError):
            error = ValueError("another process of this run has stopped; its own message says why")
        rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
        print(f"upop: error: {_one_line(error)}" + (f" (rank {rank})" if rank != "0" else ""), file=sys.stderr)
        sys.exit(2)


def _verbs() -> argparse.ArgumentParser:
    lines = [f"  {verb:9} {text}" for verb, text in VERBS.items()]
    parser = argparse.ArgumentParser(
        prog="upop",
        description=DESCRIPTION,
        usage="upop VERB [options]",
        epilog="verbs:\n" + "\n".join(lines) + "\n\nupop VERB --help shows the options of a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"upop {__version__}")
    parser.add_argument("verb", choices=list(VERBS), metavar="VERB", help="what to do, see below")
    return parser


def _run(verb: str, arguments: list[str]) -> None:
    _quiet()
    if verb == "inspect":
        _inspect(arguments)
    elif verb == "import":
        _import(arguments)
    elif verb == "report":
        _report(arguments)
    elif verb == "test":
        _test(arguments)
    else:
        _fit(arguments, verb)


def _quiet() -> None:
    """Silence what libraries say that is no news; Lightning's progress bar, downloads and real warnings stay."""
    warnings.formatwarning = lambda message, *_, **__: f"upop: warning: {_one_line(message)}\n"
    for pattern in HARMLESS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    logging.getLogger("transformers.modeling_utils").addFilter(_is_news)
    disable_progress_bar()  # "Loading weights", a bar of milliseconds per model
    enable_progress_bars()  # the line above silences downloads too, which take minutes


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith(CHATTER) and "LOAD REPORT" not in text  # upop refuses such weights, in one line


def build_parser(verb: str = "fit") -> LightningArgumentParser:
    """The parser of a recipe: every signature is an option, every docstring its help."""
    from lightning.pytorch import LightningDataModule, Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    from upop.callbacks import ProgressiveSearch
    from upop.runs.timing import Measure
    from upop.tasks import Distillation, Task, Training

    parser = LightningArgumentParser(
        prog=f"upop {verb}", description=VERBS[verb], exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="recipe, a YAML file; several overlay one another in order")
    parser.add_argument("--seed_everything", type=int, default=42, help="seed of weights, data, dropout and policy")
    parser.add_argument("--run_dir", type=str, default="runs/upop", help="directory of the run; resumed if it exists")
    parser.add_subclass_arguments(Task, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_class_arguments(Training, "finetune")
    parser.add_class_arguments(ProgressiveSearch, "search", instantiate=False)
    parser.add_class_arguments(Training, "search", instantiate=False, as_group=False)
    parser.add_class_arguments(Training, "retrain")
    parser.add_class_arguments(Distillation, "distill")
    parser.add_class_arguments(Measure, "measure")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({"finetune.epochs": 0, "search.lr_schedule": "constant"})
    return parser


def parse(parser: LightningArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a recipe and its overrides.

    Raises:
        ValueError: In one line, with the closest valid key where a key is unknown.
    """
    try:
        return parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(_explain(parser, str(error))) from error


def _explain(parser: LightningArgumentParser, message: str) -> str:
    """One line of a parser's message, with the closest valid name where a key or class is unknown."""
    from upop.messages import closest

    line = _plain(UNION.sub(_of_union, _one_line(message)))
    missing = UNKNOWN_CLASS.search(line)
    if missing:
        return line + (closest(missing.group(1), _classes()) or f"; upop has {sorted(_classes())}")
    found = UNKNOWN_KEY.search(line)
    if not found:
        return line
    section, _, unknown = next(group for group in found.groups() if group).partition(".")
    sections = {action.dest.partition(".")[0] for action in parser._actions}
    if section not in sections and unknown:
        return line + closest(section, sections)
    unknown = unknown.rpartition(".")[2] or section
    keys = {action.dest.rpartition(".")[2] for action in parser._actions}
    keys |= {key for made in _classes().values() for key in inspect.signature(made).parameters}
    return line + closest(unknown, keys - {unknown})


def _of_union(found: re.Match[str]) -> str:
    """What a value with several types should have been; or what is wrong with it, where its type is right."""
    errors = [error.partition(" - ")[0] for error in re.split(r" - (?=Expected a )", found["errors"])]
    wrong = [error for error in errors if not error.startswith("Expected a ")]
    if wrong or found["given"] is None:
        return (wrong or errors)[0]
    types = [error.removeprefix("Expected a ") for error in errors if "NoneType" not in error]
    given = found["given"] if len(found["given"]) < 80 else found["given"][:77] + "..."
    return f"Expected a {' or a '.join(types)}. Got value: {given}"


def _plain(line: str) -> str:
    """Types as a user writes them."""
    return re.sub(r"\ba typing\.Literal(?=\[)", "one of ", re.sub(r"\ba <class '(\w+)'>", r"\1", line))


def _classes() -> dict[str, type]:
    """The tasks and data modules that upop has, by name."""
    import upop.data
    import upop.tasks

    found = {name: getattr(module, name) for module in (upop.data, upop.tasks) for name in module.__all__}
    return {name: made for name, made in found.items() if inspect.isclass(made)}


def recipe_of(parser: LightningArgumentParser, config: Namespace) -> Recipe:
    """Instantiate a parsed recipe; reads no weights and no data."""
    import yaml

    from upop.callbacks import ProgressiveSearch
    from upop.runs import Recipe
    from upop.tasks import Training

    for settings in (config.search, config.data.get("init_args", {})):
        if "seed" in settings and settings["seed"] is None:
            settings["seed"] = config.seed_everything
    plain = yaml.safe_load(parser.dump(config, skip_unset=False, skip_link_targets=False))
    plain.pop("config", None)
    try:
        made = parser.instantiate(config)
    except (ValueError, TypeError) as error:
        raise type(error)(_explain(parser, str(error))) from error

    def pick(cls: type) -> dict[str, Any]:
        return {name: made.search[name] for name in inspect.signature(cls).parameters}

    training = {"finetune": made.finetune, "search": Training(**pick(Training)), "retrain": made.retrain}
    search = ProgressiveSearch(**pick(ProgressiveSearch))
    trainer = dict(made.trainer.as_dict())
    return Recipe(
        made.model, made.data, search, training, made.distill, trainer, made.seed_everything, plain, made.measure
    )


def _fit(arguments: list[str], verb: str) -> None:
    parser = build_parser(verb)
    config = parse(parser, arguments)
    from lightning.pytorch.utilities import rank_zero_only

    from upop.runs import RunDirectory, fit
    from upop.runs.summary import summarise

    recipe = recipe_of(parser, config)
    directory = RunDirectory(config.run_dir, recipe.config)
    fit(recipe, directory, None if verb == "fit" else verb)
    if directory.done("retrain"):
        rank_zero_only(summarise)(recipe, directory)
        rank_zero_only(_write_report)([directory.path])


def _test(arguments: list[str]) -> None:
    parser = build_parser("test")
    parser.add_argument(
        "--checkpoint", type=str, help="model directory; default: the run's result, or model.checkpoint"
    )
    parser.add_argument(
        "--plan",
        type=str,
        help="plan.json: evaluate the checkpoint as it was before the search, with these masks on, uncut",
    )
    config = parse(parser, arguments)
    from pathlib import Path

    from upop.runs.evaluation import default_checkpoint, evaluate_checkpoint

    checkpoint, plan = config.pop("checkpoint", None), config.pop("plan", None)
    recipe = recipe_of(parser, config)
    checkpoint = checkpoint or default_checkpoint(recipe, Path(config.run_dir), dense=plan is not None)
    evaluate_checkpoint(recipe, checkpoint, plan)


def _report(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="upop report", description=VERBS["report"], allow_abbrev=False)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="directory of a finished run")
    parser.add_argument(
        "--to", help="file to write (default: report.html in the run directory; of several, in the working directory)"
    )
    parser.add_argument(
        "--metric",
        help="what the headline and the curve show, by its name in summary.json (default: mean, accuracy or cider, "
        "whichever a run has, else its first metric)",
    )
    options = parser.parse_args(arguments)
    _write_report(options.run_dirs, options.to, options.metric)


def _write_report(run_dirs: Sequence[str | Path], to: str | None = None, metric: str | None = None) -> None:
    """Write the page of finished runs and say where it is."""
    from upop.runs.reporting import write_report

    print(f"report: {write_report(run_dirs, to, metric)}")


def _inspect(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="upop inspect", description=VERBS["inspect"], allow_abbrev=False)
    parser.add_argument("model", help="recipe (YAML), model directory, hub name, or timm/NAME")
    parser.add_argument("--units", nargs="+", help="unit kinds: head, head_dim, neuron (default: head_dim neuron)")
    parser.add_argument("--text-length", type=int, help="tokens of a text, for FLOPs (default: all positions)")
    options = parser.parse_args(arguments)
    from upop.runs.inspection import inspect as show

    checkpoint, units, length = options.model, options.units, options.text_length
    if checkpoint.endswith((".yaml", ".yml")):
        recipe_parser = build_parser()
        config = parse(recipe_parser, ["--config", checkpoint])
        recipe = recipe_of(recipe_parser, config)
        checkpoint, units = recipe.task.checkpoint, units or recipe.search.units
        length = length or recipe.data.text_length
    show(checkpoint, units or ("head_dim", "neuron"), length)


def _import(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="upop import", description=VERBS["import"], allow_abbrev=False)
    parser.add_argument("file", help="checkpoint with the authors' names, such as model_base_nlvr.pth")
    parser.add_argument(
        "--like",
        required=True,
        help="model directory or hub name of a BLIP of the same task and size, whose configuration and processor are "
        "taken; of any task for NLVR",
    )
    parser.add_argument("--to", required=True, help="directory to write; it must not exist")
    parser.add_argument(
        "--image-size", type=int, help="pixels along a side, position embeddings are interpolated (default: --like's)"
    )
    options = parser.parse_args(arguments)
    from upop.export import import_checkpoint

    imported = import_checkpoint(options.file, options.like, options.to, options.image_size)
    print("\n".join(imported.lines()))


def _one_line(error: object) -> str:
    text = str(error).strip()
    in_worker = IN_WORKER.match(text)
    return re.sub(r"\s+", " ", in_worker["error"] if in_worker else text)


if __name__ == "__main__":
    main()
