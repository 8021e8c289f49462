"""Writes a run as a diffusers folder: python export.py run=NAME output=DIR [dtype=float16]."""

import sys

from doors.options import ExportOptions, parse
from runs.cli import run_door

USAGE = "python export.py run=RUN output=DIR [dtype=float16]"


def main() -> None:
    """Parses the options, then exports."""
    words = parse(ExportOptions, sys.argv[1:], USAGE).refuse(method=True)
    from doors.export import export
    from runs.logs import run_log

    with run_log(None):
        export(words.door)


if __name__ == "__main__":
    run_door(main)
