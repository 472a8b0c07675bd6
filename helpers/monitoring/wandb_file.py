"""Reads back what a W&B run wrote to its ``.wandb`` file: a LevelDB log of protobuf messages."""

import json
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768
_WHOLE, _LAST = 1, 4  # kinds of LevelDB's fragments that end a record


def read_records(path: Path) -> Iterator:
    """The whole records in the file, oldest first; what a kill cut off at its end is left out.

    The format: https://github.com/google/leveldb/blob/main/doc/log_format.md, after seven bytes of W&B's own.

    Raises:
        ValueError: if it is no such file.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, message = Path(path).read_bytes(), 7, b""
    if data[:4] != b":W&B":
        raise ValueError(f"{path} is not the file of a W&B run")
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        part = data[position + 7 : position + 7 + length]
        position += 7 + length
        if len(part) < length or not kind:
            return
        message += part
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(message)
            message = b""


def read_history(path: Path) -> list[dict]:
    """What was logged, a dict a step; its number is at ``_step``."""
    return [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in read_records(path)
        if record.WhichOneof("record_type") == "history"
    ]
