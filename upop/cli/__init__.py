"""``upop <verb>``: the command line. The only part that may import everything."""

from upop.cli.main import main
from upop.cli.recipe import build_parser, parse, recipe_of

__all__ = ["build_parser", "main", "parse", "recipe_of"]
