"""What several tests share."""

import json
from pathlib import Path

import pytest

from tinymoe.golden import __main__ as golden

ROOT = Path(__file__).parents[1]  # of the project: README.md, docs/, lessons/


# --- the pack for authors of kernels ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def files():
    """Its files: name to bytes."""
    return dict(golden.pack(0))


@pytest.fixture(scope="session")
def manifest(files):
    return json.loads(files[golden.MANIFEST])
