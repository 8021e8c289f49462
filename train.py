"""Trains an experiment: python train.py experiment=NAME [overrides]; python train.py --help lists the names."""

import sys

import hydra
from omegaconf import DictConfig

from runs.choices import CONF, help_text
from runs.cli import Launch, read_command_line, run_door
from runs.words import readable

launch = Launch()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def compose(config: DictConfig) -> float | None:
    """Takes the config that Hydra composed."""
    return launch.add(config)


def main() -> None:
    """Finds out what to train, then trains."""
    # torch and Lightning are imported when a training starts, so that --help and --cfg job answer at once.
    sys.argv[1:] = readable(sys.argv[1:])  # Hydra takes its words from there
    given = read_command_line(sys.argv[1:])
    if given.help:
        sys.stdout.write(help_text())
        return
    if not launch.resume(given.overrides, given.multirun):
        compose()
    launch.run()


if __name__ == "__main__":
    run_door(main)
