"""Measures a trained run: python evaluate.py run=NAME [split=test] [datamodule.root=DIR]; --help lists the options."""

import sys

from runs.cli import run_door

USAGE = "python evaluate.py run=RUN [split=val|test] [datamodule.root=DIR] [datamodule=builtin_photos] ..."


def main() -> None:
    """Parses the options, then evaluates."""
    from runs.options import parse

    arguments = sys.argv[1:]
    from runs.evaluation import EvaluateOptions, evaluate

    options, overrides = parse(EvaluateOptions, arguments, USAGE)
    evaluate(options, overrides)


if __name__ == "__main__":
    run_door(main)
