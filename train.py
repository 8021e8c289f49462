"""Trains an experiment: python train.py experiment=NAME [overrides]; see conf/experiment for the names."""

import hydra
from omegaconf import DictConfig

from runs.cli import run_door
from runs.config import resolved


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    # torch and Lightning are imported in here, so that --help and --cfg job answer at once.
    plain = resolved(config)
    from runs.training import train

    train(plain)


if __name__ == "__main__":
    run_door(main)
