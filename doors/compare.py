"""Measures trained runs on the same images: one of them, or several methods beside one another."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import MISSING, OmegaConf

from doors.measure import Method, Plan, fitted_baselines, measured
from doors.options import (
    CompareOptions,
    EvaluateOptions,
    MeasureOptions,
    Words,
    converted,
    method_options,
    option_fields,
)
from doors.predict import pick_device
from doors.report import write_report
from lightning_modules.base import TranslationModule
from lightning_modules.options import path
from runs.build import build
from runs.choices import CONF, nearest
from runs.config import override, stamp
from runs.load import Run, load_run, module_class, resolve_shipped_paths
from tasks.base import Task


def evaluate(words: Words[EvaluateOptions]) -> Path:
    """Measures one run beside the task's baselines; see `measure`."""
    run = words.door.run
    return measure([Plan("", [run], words.method)], words, title=run)


def compare(words: Words[CompareOptions], intro: str = "") -> Path:
    """Measures several methods, or a curve over one option; see `measure`. The page begins with `intro`."""
    plans = parse_methods(words.door.methods, words.method)
    if words.door.vary:
        plans = [point for plan in plans for point in vary(plan, words.door.vary)]
    return measure(plans, words, title="Methods compared", folder="outputs/compare", intro=intro)


def parse_methods(text: str, shared: Mapping[str, str]) -> list[Plan]:
    """Methods from `A=RUN|RUN; B=RUN@steps=5,guidance=1`, with options that all of them get."""
    plans: dict[str, Plan] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, listed = (word.strip() for word in part.partition("="))
        found = [run.strip().partition("@") for run in listed.split("|")]
        runs = [path(run) for run, _, _ in found]
        if not (name and all(runs)):
            raise ValueError(
                f"methods= has '{part}', which is not of the form NAME=RUN or NAME=RUN|RUN; put a semicolon between methods"
            )
        if name in plans or len(set(runs)) < len(runs):
            raise ValueError(f"methods= has '{part}', which gives a name or a run twice; they must differ")
        given = [_settings(run, settings) for run, _, settings in found]
        if any(texts != given[0] for texts in given):
            raise ValueError(
                f"methods= joins runs of '{name}' that draw with unlike options; repeat them after each run"
            )
        plans[name] = Plan(name, runs, {**shared, **given[0]})
    if not plans:
        raise ValueError("methods= names no method; give NAME=RUN, several with semicolons between them")
    return list(plans.values())


def _settings(run: str, text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split(",") if text]
    if not all(key and equals for key, equals, _ in pairs):
        raise ValueError(f"methods= has '{run}@{text}'; options after @ are KEY=VALUE,KEY=VALUE")
    return {key.strip(): value.strip() for key, _, value in pairs}


def vary(plan: Plan, text: str) -> list[Plan]:
    """The same method at each value of OPTION=1,2,5; what stands beside its result is drawn with the first alone."""
    key, _, listed = text.partition("=")
    if key in plan.texts:
        raise ValueError(
            f"vary={text} sets {key}, and so does {key}={plan.texts[key]}; leave one of them out"
        )
    words = [word.strip() for word in listed.split(",")]
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"vary={text} is not of the form OPTION=1,2,5") from None
    if len(set(values)) < len(values):
        raise ValueError(f"vary={text} gives a value twice; they must differ")
    return [
        Plan(
            f"{plan.name}, {key}={word}", plan.runs, {**plan.texts, key: word}, plan.name, value, number == 0
        )
        for number, (word, value) in enumerate(zip(words, values, strict=True))
    ]


def measure(
    plans: Sequence[Plan], words: Words[Any], *, title: str, folder: str | None = None, intro: str = ""
) -> Path:
    """Measures the planned methods, prints the tables and writes them with a sheet and a page."""
    door: MeasureOptions = words.door
    classes = [module_class(plan.runs[0]) for plan in plans]
    options = [method_options(c, plan.texts, type(door)) for c, plan in zip(classes, plans, strict=True)]
    kind = _task(classes)
    given = _protocol(kind, words.protocol)
    device = pick_device(door.device)
    runs = {name: load_run(name) for plan in plans for name in plan.runs}
    methods = [_method(plan, o, runs, device) for plan, o in zip(plans, options, strict=True)]

    first = runs[plans[0].runs[0]]
    protocol = methods[0].modules[0].protocol(methods[0].options) | given
    config = with_datamodule(first.config, words.overrides)
    datamodule = build(kind(**protocol).as_measured(config["datamodule"]), "datamodule")
    datamodule.setup("validate" if door.split == "val" else "test")
    sample = getattr(datamodule, f"{door.split}_dataset")[0]
    kind.check_sample(sample)
    for method in methods if not sample.get("caption") else ():
        method.modules[0].check_without_captions(method.options)
    task = kind.for_data(datamodule, **protocol)
    fitted, source = fitted_baselines(task, datamodule, door.split)
    folder = folder or f"outputs/evaluate/{first.config['experiment_name']}"
    place = Path(door.output or f"{folder}/{stamp()}")
    found = measured(task, methods, datamodule, door.split, door.limit, fitted)
    place.mkdir(parents=True, exist_ok=True)
    facts = {
        **({"run": plans[0].runs[0]} if len(runs) == 1 else {}),
        "methods": {m.plan.name or m.plan.runs[0]: _described(m) for m in methods},
        "optimiser_steps": {name: run.num_steps for name, run in runs.items()},
        "split": door.split,
        "num_images": found.num_images,
        "protocol": task.described(),
        "baselines_from": source,
    }
    write_report(place, title, intro, task, found, facts)
    return place


def _described(method: Method) -> dict[str, Any]:
    """The runs of a method and the options that a user can set."""
    values = {key: getattr(method.options, key) for key in option_fields(type(method.options))}
    return {"runs": method.plan.runs, "options": values}


def _method(plan: Plan, options: Any, runs: Mapping[str, Run], device: torch.device) -> Method:
    trainings = [runs[name] for name in plan.runs]
    first = trainings[0].config
    seeds = {run.config["seed"] for run in trainings}
    if len(seeds) < len(trainings) or any(run.config["module"] != first["module"] for run in trainings):
        raise ValueError(
            f"methods= joins runs of '{plan.name}' that do not differ in the seed of their training alone; give runs of "
            "other settings a name of their own"
        )
    modules = [run.module.to(device) for run in trainings]
    num_samples = getattr(options, "num_samples", 1)
    if num_samples > 1 and modules[0].one_sample:
        raise ValueError(
            f"num_samples={num_samples} has no effect here, as each row is measured by one sample; leave it out"
        )
    for module in modules:
        module.check_options(options, is_folder=True)
    return Method(plan, modules, modules[0].prepare(options, lambda name: load_run(name).module))


def _task(classes: Sequence[type[TranslationModule]]) -> type[Task]:
    """The task of all classes."""
    task = classes[0].task
    for found in classes:
        if found.task is None:
            raise ValueError(f"{found.__name__} has no task, so there is nothing to measure")
        if found.task is not task:
            raise ValueError(
                f"{classes[0].__name__} and {found.__name__} are measured as different tasks; compare methods of one task"
            )
    assert task is not None
    return task


def _protocol(task: type[Task], texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of the protocol's fields."""
    known = [f.name for f in fields(task)]
    for key in texts:
        if key not in known:
            raise ValueError(f"unknown key 'protocol.{key}' of {task.name}{nearest(key, known)}")
    return converted(task, texts)


def with_datamodule(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A run's config with its data changed by words such as datamodule.root=DIR or datamodule=builtin_photos."""
    others = [word for word in overrides if not word.lstrip("+").startswith(("datamodule=", "datamodule."))]
    if others:
        raise ValueError(
            f"{others[0]} has no effect here, as the run is trained; of its config only datamodule. changes"
        )
    group = [word for word in overrides if word.startswith("datamodule=")]
    if group:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("train", [group[-1], f"seed={config['seed']}"])
        chosen: Any = OmegaConf.to_container(composed.datamodule, resolve=True)
        # Pictures stay as large as the run saw them, unless the user says otherwise.
        config = {**config, "datamodule": {**chosen, "size_px": config["datamodule"]["size_px"]}}
    changed = override(config, [word for word in overrides if word not in group])
    missing = [key for key, value in changed["datamodule"].items() if value == MISSING]
    if missing:
        raise ValueError(f"datamodule.{missing[0]} has no value; set it with datamodule.{missing[0]}=VALUE")
    return {**changed, "datamodule": resolve_shipped_paths(changed["datamodule"])}
