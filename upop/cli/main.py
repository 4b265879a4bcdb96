"""``upop <verb>``: errors of the user in one line, and quiet libraries.

The verbs and their help need nothing but the standard library; torch and Lightning are imported when a verb runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence

from upop import __version__
from upop.cli.explain import one_line
from upop.cli.verbs import HELP, run

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
LESS_MEMORY = (
    "what helps: a smaller data.init_args.batch_size with as much more trainer.accumulate_grad_batches, "
    "gradient_checkpointing: true of the phase (finetune, search or retrain), trainer.precision: bf16-mixed, and on "
    "several GPUs trainer.strategy: fsdp2; outside of training a smaller batch"
)
"""What to do where a GPU has no memory left."""
EXIT_CODES = {
    "0": "done",
    "1": "a fault of upop's own, with a traceback",
    "2": "an error, told in one line; of another rank's too",
    "130": "interrupted (Ctrl-C); the same command goes on from the last checkpoint",
    "143": "stopped by SIGTERM after writing a checkpoint; the same command goes on from there",
    "138": "stopped by SLURM's signal (SIGUSR1) in the same way, and the job is requeued",
}
DESCRIPTION = "Compress vision-language transformers by structure: a checkpoint goes in, a smaller one comes out."


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb. Errors of the user end with one line and exit code 2; ``--debug`` shows the traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    options = _verbs().parse_args(arguments[:1])
    try:
        _quiet()
        run(options.verb, arguments[1:])
    except KeyboardInterrupt:
        print("\nupop: stopped; run the same command again to go on where it stood", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, RuntimeError, argparse.ArgumentError) as error:
        if debug:
            raise
        if isinstance(error, RuntimeError):
            told = _told(error)
            if told is None:
                raise
            error = ValueError(told)
        rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
        print(f"upop: error: {one_line(error)}" + (f" (rank {rank})" if rank != "0" else ""), file=sys.stderr)
        sys.exit(2)


def _told(error: RuntimeError) -> str | None:
    """What a user can do about an error of torch's; ``None`` where it is a fault of upop's own."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return f"{one_line(error).partition(' GPU ')[0].rstrip('.')}; {LESS_MEMORY}"
    return "another process of this run has stopped; its own message says why" if PEER_GONE.search(str(error)) else None


def _verbs() -> argparse.ArgumentParser:
    lines = [f"  {verb:9} {text}" for verb, text in HELP.items()]
    codes = [f"  {code:9} {text}" for code, text in EXIT_CODES.items()]
    parser = argparse.ArgumentParser(
        prog="upop",
        description=DESCRIPTION,
        usage="upop VERB [options]",
        epilog="\n".join(["verbs:", *lines, "", "exit codes:", *codes, "", "upop VERB --help shows its options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"upop {__version__}")
    parser.add_argument("verb", choices=list(HELP), metavar="VERB", help="what to do, see below")
    return parser


def _quiet() -> None:
    """Silence what libraries say that is no news; Lightning's progress bar, downloads and real warnings stay."""
    warnings.formatwarning = lambda message, *_, **__: f"upop: warning: {one_line(message)}\n"
    for pattern in HARMLESS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    logging.getLogger("transformers.modeling_utils").addFilter(_is_news)
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # an error follows, in one line
    disable_progress_bar()  # "Loading weights", a bar of milliseconds per model
    enable_progress_bars()  # the line above silences downloads too, which take minutes


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith(CHATTER) and "LOAD REPORT" not in text  # upop refuses such weights, in one line
