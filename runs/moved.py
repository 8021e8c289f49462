"""What saved configs call by an older name: classes that moved and keys that were renamed, brought up to date on reading.

A row is added in the commit that moves something, and stays: run folders of any age keep loading and resuming.
"""

from typing import Any

# old target: new target
TARGETS = {
    "callbacks.checkpoints.AtomicCheckpointIO": "reliability.checkpoint_io.AtomicCheckpointIO",
    "callbacks.checkpoint_io.AtomicCheckpointIO": "reliability.checkpoint_io.AtomicCheckpointIO",
    "callbacks.checkpoints.BestCheckpoint": "reliability.checkpoints.BestCheckpoint",
    "callbacks.checkpoints.LastCheckpoint": "reliability.checkpoints.LastCheckpoint",
    "callbacks.finite_guard.FiniteGuard": "reliability.finite_guard.FiniteGuard",
    "callbacks.preemption.Preemption": "reliability.preemption.Preemption",
    "datamodules.builtin_unpaired.BuiltinUnpairedDataModule": "datamodules.builtin.BuiltinUnpairedDataModule",
}
# new target: {old key: new key}, None where the key is gone and means nothing any more
KEYS: dict[str, dict[str, str | None]] = {}


def upgraded(config: Any) -> Any:
    """A copy of plain values with today's targets and keys.

    Example:
        >>> upgraded({"last": {"_target_": "callbacks.checkpoints.LastCheckpoint", "every_n_steps": 5}})
        {'last': {'_target_': 'reliability.checkpoints.LastCheckpoint', 'every_n_steps': 5}}
    """
    if isinstance(config, list):
        return [upgraded(value) for value in config]
    if not isinstance(config, dict):
        return config
    node = {key: upgraded(value) for key, value in config.items()}
    target = node.get("_target_")
    if not isinstance(target, str):
        return node
    node["_target_"] = target = TARGETS.get(target, target)
    renamed = KEYS.get(target, {})
    return {renamed.get(key, key): value for key, value in node.items() if renamed.get(key, key) is not None}
