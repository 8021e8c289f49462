"""What a command line may tell Hydra itself.

Hydra builds what stands under `hydra:` (callbacks, launchers, log handlers) while it composes, before any check of
ours. Those settings belong to the files in conf/; the words of a command can come from a sweep's server.
"""

from argparse import Namespace

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

ALLOWED = (
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.sweeper.direction",
    "hydra.sweeper.max_batch_size",
    "hydra.sweeper.n_trials",
    "hydra.verbose",
    "hydra/sweeper",
)
FLAGS = {
    "experimental_rerun": "unpickles a file, which can run code; continue a run with resume=RUN_DIR",
    "config_path": "would read other configs than conf/; put your files into conf/experiment",
    "config_name": "would read another config than conf/train.yaml; put your file into conf/experiment",
    "config_dir": "would read configs that nobody checked; put your files into conf/experiment or conf/local",
}


def read_command_line(words: list[str]) -> Namespace:
    """The words as Hydra's own parser reads them, after refusing what would make it build objects or read pickles.

    Raises:
        ValueError: with the word.
        OverrideParseException: a word that is no override.
    """
    given = get_args_parser().parse_args(words)
    for flag, reason in FLAGS.items():
        if getattr(given, flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')} is refused: it {reason}")
    for change in OverridesParser.create().parse_overrides(given.overrides):
        if _names_hydra(change) and not _is_harmless(change):
            raise ValueError(
                f"'{change.input_line}' is refused: of Hydra's own settings a command may set "
                f"{', '.join(ALLOWED)}; the others belong into conf/train.yaml"
            )
    return given


def _names_hydra(change: Override) -> bool:
    places = (change.key_or_group, change.package or "")
    return any(place == "hydra" or place.startswith(("hydra.", "hydra/")) for place in places)


def _is_harmless(change: Override) -> bool:
    """Folders may be interpolated; a sweeper is built from its settings, so that there an interpolation is not."""
    value = change.value()
    hidden = isinstance(value, str) and "${" in value and not change.key_or_group.endswith("dir")
    return (
        change.key_or_group in ALLOWED
        and not (change.package or "").startswith("hydra")
        and isinstance(value, (str, int, float, bool))
        and not hidden
    )
