"""The doors called with words as a user gives them."""

from pathlib import Path
from typing import Any

from doors.compare import compare, evaluate
from doors.options import CompareOptions, EvaluateOptions, PredictOptions, parse
from doors.predict import predict


def words(settings: dict[str, Any], *others: str) -> list[str]:
    """`key=value` of every setting that is not None."""
    return [*(f"{key}={value}" for key, value in settings.items() if value is not None), *others]


def predicted(**settings: Any) -> int:
    found = parse(PredictOptions, words(settings), "predict.py")
    return predict(found.door, found.method)


def evaluated(*others: str, **settings: Any) -> Path:
    return evaluate(parse(EvaluateOptions, words(settings, *others), "evaluate.py"))


def compared(*others: str, **settings: Any) -> Path:
    return compare(parse(CompareOptions, words(settings, *others), "compare.py"))
