"""Python's logging during a run: each message once on the screen and once in train.log, warnings included."""

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOMS = tuple(path.parent.name for path in Path(__file__).parents[1].glob("*/__init__.py"))
LIBRARIES = ("lightning", "lightning.pytorch", "lightning.fabric")
NOISE = (
    "Tip:",
    "thrown while requesting",  # the hub is out of reach: our own sentence follows
    "Retrying in",
    "litlogger",
    "GPU available",
    "TPU available",
    "HPU available",
    "does not have many workers",
    "smaller than the logging interval",
    "limit_val_batches=1.0",
    "Restoring states from",
    "Restored all states",
    "`Trainer.fit` stopped",
    "module(s) in eval mode",  # frozen parts are
    "LeafSpec",  # torch 2.15 to Lightning 2.6
)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in NOISE)


class _ScreenFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().strip()
        return message if record.levelno == logging.INFO else f"{record.levelname.lower()}: {message}"


@contextmanager
def run_log(path: Path | None, *, info: bool = True) -> Iterator[None]:
    """Sends the log to the screen and, if given, to a file; with info=False the screen shows warnings only."""
    quiet_libraries()
    screen = logging.StreamHandler(sys.stderr)
    screen.setFormatter(_ScreenFormatter())
    screen.setLevel(logging.INFO if info else logging.WARNING)
    handlers: list[logging.Handler] = [screen]
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    for handler in handlers:
        handler.addFilter(_is_wanted)
        logging.getLogger().addHandler(handler)
    for name in (*ROOMS, "lightning"):
        logging.getLogger(name).setLevel(logging.INFO)
    plain, warnings.formatwarning = warnings.formatwarning, _one_line  # type: ignore[assignment]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        warnings.formatwarning = plain
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


def quiet_libraries() -> None:
    """Takes away the handlers that Lightning gives its loggers on import: its lines would appear twice."""
    for name in LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    for name in ("diffusers", "transformers"):
        if name in sys.modules:  # their bars for loading and saving say nothing for models of one file
            logging_module = importlib.import_module(f"{name}.utils.logging")
            logging_module.disable_progress_bar()
            logging_module.set_verbosity_error()


def _one_line(message: object, *_where: object) -> str:
    return " ".join(str(message).split())


def log_error_to_file(error: BaseException) -> None:
    """Writes an error with its traceback into the open log files; the screen gets it from the door."""
    record = logging.LogRecord(
        "runs", logging.ERROR, __file__, 0, "%s", (error,), (type(error), error, error.__traceback__)
    )
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
