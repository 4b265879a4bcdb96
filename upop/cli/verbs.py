"""What each verb of the command line does. torch and Lightning are imported when a verb runs, so that help is quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from upop.cli.recipe import build_parser, parse, recipe_of

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch.cli import LightningArgumentParser

HELP = {
    "fit": "finetune, search, cut, retrain and export, from where the run directory stands",
    "finetune": "train the dense model on the task",
    "search": "learn which units the task can spare, write plan.json, and cut",
    "retrain": "train the cut model and export it",
    "test": "evaluate a dense, masked or compressed model (--checkpoint DIR, --plan PLAN)",
    "report": "write one HTML page of runs, finished or not (RUN_DIR ...); several are compared",
    "bench": "time models side by side: latency, throughput, peak memory (DIR ... --vs DENSE)",
    "export": "write ONNX files or torch programs that run without upop (DIR --format onnx|torch)",
    "inspect": "show what can be cut in a model or a recipe's model, before any training",
    "import": "make a model directory of a BLIP or CLIP as its authors released it (FILE --like MODEL --to DIR)",
}


def run(verb: str, arguments: list[str]) -> None:
    """Run a verb of :data:`HELP`."""
    actions: dict[str, Callable[[list[str]], None]] = {
        "test": _test,
        "report": _report,
        "bench": _bench,
        "export": _export,
        "inspect": _inspect,
        "import": _import,
    }
    actions.get(verb, partial(_fit, verb))(arguments)


def _parser(verb: str, arguments: Sequence[str]) -> LightningArgumentParser:
    """The parser of a verb that takes a recipe."""
    if arguments and _is_recipe(arguments[0]):
        raise ValueError(f"a recipe is given as an option: upop {verb} --config {arguments[0]}")
    return build_parser(verb, HELP[verb])


def _plain_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb that takes no recipe."""
    return argparse.ArgumentParser(prog=f"upop {verb}", description=HELP[verb], allow_abbrev=False)


def _fit(verb: str, arguments: list[str]) -> None:
    parser = _parser(verb, arguments)
    config = parse(parser, arguments)
    from lightning.pytorch.utilities import rank_zero_only

    from upop.runs import RunDirectory, fit
    from upop.runs.summary import summarise
    from upop.runs.supervision import supervised

    recipe = recipe_of(parser, config)
    directory = RunDirectory(config.run_dir, recipe.config)
    with supervised(directory.path):
        fit(recipe, directory, None if verb == "fit" else verb)
        if directory.done("retrain"):
            rank_zero_only(summarise)(recipe, directory)
            rank_zero_only(_write_report)([directory.path])


def _test(arguments: list[str]) -> None:
    parser = _parser("test", arguments)
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
    from upop.runs.supervision import supervised

    checkpoint, plan = config.pop("checkpoint", None), config.pop("plan", None)
    recipe = recipe_of(parser, config)
    checkpoint = checkpoint or default_checkpoint(recipe, Path(config.run_dir), dense=plan is not None)
    with supervised(Path(config.run_dir)):
        evaluate_checkpoint(recipe, checkpoint, plan)


def _report(arguments: list[str]) -> None:
    parser = _plain_parser("report")
    parser.add_argument(
        "run_dirs", nargs="+", metavar="RUN_DIR", help="directory of a run; of one that is not finished, what there is"
    )
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
    """Write the page of runs and say where it is."""
    from upop.runs.reporting import write_report

    print(f"report: {write_report(run_dirs, to, metric)}")


def _bench(arguments: list[str]) -> None:
    parser = _plain_parser("bench")
    parser.add_argument("models", nargs="+", metavar="DIR", help="model directory, dense or compressed")
    parser.add_argument(
        "--vs", help="baseline of the others: a directory, hub name or timm/NAME (default: none, then no ratios)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--dtype", default="fp32", help="of weights and images: fp32, bf16, fp16 (default: fp32)")
    parser.add_argument(
        "--batch-size", type=int, nargs="+", default=[1, 32], help="samples per forward pass (default: 1 32)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="time what torch.compile makes of the models; compiling is timed apart"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="time to spend on each batch size, about (default: 10)"
    )
    parser.add_argument("--to", default="bench.png", help="picture to write, .png or .svg (default: bench.png)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers here")
    options = parser.parse_args(arguments)
    from upop.runs.bench import run_bench
    from upop.runs.bench_conditions import Conditions

    conditions = Conditions(options.device, options.dtype, options.batch_size, options.compile, options.seconds)
    run_bench(options.models, options.vs, conditions, options.to, options.json)


def _export(arguments: list[str]) -> None:
    parser = _plain_parser("export")
    parser.add_argument("model", metavar="DIR", help="model directory, compressed or dense")
    parser.add_argument("--format", default="onnx", help="onnx, or torch for torch.export.load (default: onnx)")
    parser.add_argument("--to", metavar="DIR", help="where to (default: a folder of the format's name in the model's)")
    parser.add_argument("--opset", type=int, help="version of ONNX's operators, 18 to 23 (default: 18)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference from the model that passes, as a part of the largest output (default: 1e-4)",
    )
    options = parser.parse_args(arguments)
    from upop.export import export_portable

    exported = export_portable(options.model, options.to, options.format, options.opset, options.tolerance)
    print("\n".join(exported.lines()))


def _inspect(arguments: list[str]) -> None:
    parser = _plain_parser("inspect")
    parser.add_argument(
        "model", nargs="+", help="recipe (YAML; several overlay one another), model directory, hub name, or timm/NAME"
    )
    parser.add_argument("--units", nargs="+", help="unit kinds: head, head_dim, neuron (default: head_dim neuron)")
    parser.add_argument("--text-length", type=int, help="tokens of a text, for FLOPs (default: all positions)")
    options = parser.parse_args(arguments)
    from upop.runs.inspection import inspect as show

    checkpoint, units, more = options.model[0], options.units, {"text_length": options.text_length}
    if any(_is_recipe(model) for model in options.model):
        recipe_parser = build_parser()
        config = parse(recipe_parser, [f"--config={file}" for file in options.model])
        recipe = recipe_of(recipe_parser, config)
        checkpoint, units = recipe.task.checkpoint, units or recipe.search.units
        more = {"text_length": options.text_length or recipe.data.text_length, "start_from": recipe.task.start_from}
    elif len(options.model) > 1:
        raise ValueError(
            f"upop inspect shows one model, not the {len(options.model)} of {options.model}; run it for each"
        )
    show(checkpoint, units or ("head_dim", "neuron"), **more)


def _is_recipe(argument: str) -> bool:
    return argument.endswith((".yaml", ".yml"))


def _import(arguments: list[str]) -> None:
    parser = _plain_parser("import")
    parser.add_argument(
        "file",
        help="weights with the authors' names (.pth, .pt or .safetensors), such as model_base_nlvr.pth, a compressed "
        "checkpoint of UPop's authors, an OpenAI CLIP state dict or an open_clip checkpoint; TorchScript archives have "
        "to be saved as a state dict first",
    )
    parser.add_argument(
        "--like",
        required=True,
        help="directory or hub name of a dense model of the same kind, task and size (a Hugging Face BLIP or CLIP), "
        "whose configuration and processor are taken; for NLVR a BLIP of any task",
    )
    parser.add_argument("--to", required=True, help="directory to write; it must not exist")
    parser.add_argument(
        "--image-size", type=int, help="pixels along a side, position embeddings are interpolated (default: --like's)"
    )
    options = parser.parse_args(arguments)
    from upop.export import import_checkpoint

    imported = import_checkpoint(options.file, options.like, options.to, options.image_size)
    print("\n".join(imported.lines()))
