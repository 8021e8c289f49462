"""Measures methods beside one another: python compare.py methods="A=RUN|RUN; B=RUN@steps=5" [vary=steps=1,2,5]."""

import sys

from doors.options import CompareOptions, parse
from runs.cli import run_door

USAGE = 'python compare.py methods="A=RUN|RUN; B=RUN@steps=5" [vary=OPTION=1,2,5] [split=val] [datamodule.root=DIR] ...'


def main() -> None:
    """Parses the options, then compares."""
    words = parse(CompareOptions, sys.argv[1:], USAGE)
    from doors.compare import compare
    from runs.logs import run_log

    with run_log(None):
        compare(words)


if __name__ == "__main__":
    run_door(main)
