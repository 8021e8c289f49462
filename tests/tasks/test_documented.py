"""docs/metrics.md names every task, metric and protocol field."""

from dataclasses import fields
from pathlib import Path

import pytest

from tasks.base import Task
from tasks.colorization import Colorization
from tasks.generation import Generation
from tasks.reconstruction import Reconstruction
from tasks.segmentation import Segmentation
from tasks.translation import Translation
from tasks.upscaling import Upscaling

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
TASKS = [Colorization, Generation, Reconstruction, Segmentation, Translation, Upscaling]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_keys_and_fields_are_documented(task):
    _, _, rest = PAGE.partition(f"\n## {task.name.capitalize()}\n")
    section, _, _ = rest.partition("\n## ")
    missing = [field.name for field in fields(task) if f"`{field.name}`" not in section]
    assert not missing
    common = PAGE[PAGE.index("## Of pictures") : PAGE.index("## Colorization")]
    for key in task().metrics():
        assert f"`{key}`" in section or f"`{key}`" in common, key
        assert key in {column.key for column in task.columns}, key


def test_a_task_must_say_what_it_measures():
    with pytest.raises(NotImplementedError, match="Task must define metrics"):
        Task().metrics()
    with pytest.raises(NotImplementedError, match="Task must define arguments"):
        Task().arguments({}, {})
