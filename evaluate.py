"""Measures a trained run: python evaluate.py run=NAME [split=test] [datamodule.root=DIR]; --help lists the options."""

import sys

from runs.cli import run_door

USAGE = "python evaluate.py run=RUN [split=val|test] [datamodule.root=DIR] [datamodule=builtin_photos] ..."


def main() -> None:
    """Parses the options, then evaluates."""
    from runs.evaluation import EvaluateOptions, evaluate
    from runs.logs import quiet_libraries, run_log
    from runs.options import parse

    options, overrides = parse(EvaluateOptions, sys.argv[1:], USAGE)
    quiet_libraries()
    with run_log(None):
        evaluate(options, overrides)


if __name__ == "__main__":
    run_door(main)
