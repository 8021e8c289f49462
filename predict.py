"""Applies a trained run: python predict.py run=NAME input=photo.jpg output=DIR; --help lists the options."""

import sys

from doors.options import PredictOptions, parse
from runs.cli import run_door

USAGE = (
    "python predict.py run=RUN input=FILE_OR_DIR output=DIR [the method's options: prompt= steps= seed= ...]"
)


def main() -> None:
    """Parses the options, then predicts; some unreadable files make the exit code 1."""
    words = parse(PredictOptions, sys.argv[1:], USAGE).refuse()
    from doors.predict import predict
    from runs.logs import run_log

    with run_log(None):
        num_failed = predict(words.door, words.method)
    if num_failed:
        sys.exit(1)


if __name__ == "__main__":
    run_door(main)
