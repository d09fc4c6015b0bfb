"""Read back what Weights & Biases wrote of a run without a network."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log with a header of 7 bytes, which is what Weights & Biases writes offline."""
    size, place, whole = 32768, 7, b""
    while place + 7 <= len(log):
        if size - place % size < 7:  # no record begins in the last bytes of a block
            place += size - place % size
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        whole += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of the only run in a folder, and the last value of each metric."""
    from wandb.proto import wandb_internal_pb2

    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    settings, metrics = {}, {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.config.update:
            settings[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.history.item:
            metrics[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return settings, metrics
