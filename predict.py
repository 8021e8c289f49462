"""Applies a trained run: python predict.py run=NAME input=photo.jpg output=DIR; --help lists the options."""

import sys

from runs.cli import run_door

USAGE = "python predict.py run=RUN input=FILE_OR_DIR output=DIR [prompt= steps= seed= num_samples= ...]"


def main() -> None:
    """Parses the options, then predicts; some unreadable files make the exit code 1."""
    from runs.logs import quiet_libraries, run_log
    from runs.options import parse
    from runs.prediction import PredictOptions, predict

    options, overrides = parse(PredictOptions, sys.argv[1:], USAGE)
    if overrides:
        raise ValueError(f"{overrides[0]} has no effect here: predict.py takes the options that --help lists")
    quiet_libraries()
    with run_log(None):
        num_failed = predict(options)
    if num_failed:
        sys.exit(1)


if __name__ == "__main__":
    run_door(main)
