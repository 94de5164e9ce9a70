"""The weights file: reads and writes safetensors with numpy alone, so that the example runs on what kvit itself needs.

    8 bytes        length of the header, little-endian
    header         JSON: {"name": {"dtype": "F16", "shape": [...], "data_offsets": [begin, end]}, ...,
                          "__metadata__": {"key": "text"}}
    the rest       the tensors; offsets count from here

The format: https://github.com/huggingface/safetensors#format. Any reader of it reads these files; float16 is all that
this one needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FLOAT16 = np.dtype("<f2")


class WeightsError(ValueError):
    """The weights file is missing, or is not one that train.py wrote."""


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read every tensor, float16, and the metadata.

    Raises WeightsError: no such file, or not a safetensors file of float16 tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}; name a file with --weights, or make one: python train.py --out {path}"
        )
    content = path.read_bytes()
    data_begin = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:data_begin])
        facts = header.pop("__metadata__", {})
        tensors = {name: tensor(entry, content, data_begin) for name, entry in header.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} is not a safetensors file of float16 tensors ({error}); make one: python train.py --out {path}"
        ) from error
    return tensors, facts


def tensor(entry: Mapping, content: bytes, data_begin: int) -> np.ndarray:
    """The tensor that one entry of the header describes; read-only, as it lies in content."""
    if entry["dtype"] != "F16":
        raise ValueError(f"a tensor is {entry['dtype']}")
    begin, end = (data_begin + offset for offset in entry["data_offsets"])
    return np.frombuffer(content[begin:end], FLOAT16).reshape(entry["shape"])


def write(path: Path, tensors: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Write tensors as float16, and metadata. The same arguments give the same bytes."""
    header: dict[str, object] = {"__metadata__": dict(facts)}
    parts, offset = [], 0
    for name, values in sorted(tensors.items()):
        parts.append(np.ascontiguousarray(values, FLOAT16).tobytes())
        end = offset + len(parts[-1])
        header[name] = {"dtype": "F16", "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers that map the file want the tensors aligned
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
