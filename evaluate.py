"""Measures a trained run: python evaluate.py run=NAME [split=test] [datamodule.root=DIR]; --help lists the options."""

import sys

from doors.options import EvaluateOptions, parse
from runs.cli import run_door

USAGE = "python evaluate.py run=RUN [split=val|test] [protocol.KEY=VALUE] [datamodule.root=DIR] [the method's options] ..."


def main() -> None:
    """Parses the options, then evaluates."""
    words = parse(EvaluateOptions, sys.argv[1:], USAGE)
    from doors.compare import evaluate
    from runs.logs import run_log

    with run_log(None):
        evaluate(words)


if __name__ == "__main__":
    run_door(main)
