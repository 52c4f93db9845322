"""Arrays and metadata in one safetensors file, of which a reader never meets half.

A checksum over names and numbers finds damage.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import UserError
from ..types import Array
from .files import write_atomically


def save_arrays(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write arrays by name, and metadata (anything JSON can hold), with a checksum over both."""
    whole = {name: np.array(a, order="C") for name, a in arrays.items()}  # the format takes memory order on trust
    text = json.dumps(metadata)
    note = json.dumps([_checksum(whole, text), text])
    write_atomically(path, save(whole, metadata={"tinymoe": note}))  # one key: the order of several would vary


def load_arrays(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what `save_arrays` wrote. Raises UserError for a file that is missing, damaged, or of another kind."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            note = (file.metadata() or {}).get("tinymoe")
        checksum, text = json.loads(note) if note else (None, "")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); it may be damaged, take another copy"
        ) from None
    if checksum is None:
        raise UserError(f"{path} was not written by tinymoe; name a folder that python -m tinymoe.train has made")
    if checksum != _checksum(arrays, text):
        raise UserError(f"{path} is damaged (its checksum does not match its numbers); take another copy")
    return arrays, json.loads(text)


def _checksum(arrays: Mapping[str, Array], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
