"""Reads back what a W&B run wrote to its own folder: the client has a writer only."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The file is a log in LevelDB's format after a header of 7 bytes: blocks of 32 KiB hold chunks of
# (checksum, length, kind) and data, and a record that does not fit its block is cut into several chunks.
_FILE_HEADER_BYTES = 7
_BLOCK_BYTES = 32768
_CHUNK_HEADER = struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a `run-ID.wandb` file in order, up to where a kill has cut it."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at run time

    data = path.read_bytes()
    position, parts = _FILE_HEADER_BYTES, b""
    while position + _CHUNK_HEADER.size <= len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _CHUNK_HEADER.size:
            position += left
            continue
        _, length, kind = _CHUNK_HEADER.unpack_from(data, position)
        start = position + _CHUNK_HEADER.size
        position = start + length
        if kind == 0 or position > len(data):
            return
        parts += data[start:position]
        if kind in (_WHOLE, _LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows: value by metric name, nested for pictures; a name with `_` in front is W&B's own."""
    rows = []
    for record in records(path):
        if record.HasField("history"):
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, name = item.nested_key or [item.key]
                inner = row
                for part in outer:
                    inner = inner.setdefault(part, {})
                inner[name] = json.loads(item.value_json)
            rows.append(row)
    return rows
