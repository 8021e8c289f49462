"""Writes a run as a diffusers folder: python export.py run=NAME output=DIR [dtype=float16]."""

import sys

from runs.cli import run_door

USAGE = "python export.py run=RUN output=DIR [dtype=float16]"


def main() -> None:
    """Parses the options, then exports."""
    from runs.exporting import ExportOptions, export
    from runs.logs import quiet_libraries, run_log
    from runs.options import parse

    options, overrides = parse(ExportOptions, sys.argv[1:], USAGE)
    if overrides:
        raise ValueError(f"{overrides[0]} has no effect here: export.py takes the options that --help lists")
    quiet_libraries()
    with run_log(None):
        export(options)


if __name__ == "__main__":
    run_door(main)
