"""Run ComfyUI's features with each kind of predictor; write docs/COMPATIBILITY.md and its part of
docs/TRUST.md.

    PYTHONPATH=.:tests .venv/bin/python -m trust.matrix"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    os.environ["AMED_WRITE"] = "1"
    return int(pytest.main([str(ROOT / "tests" / "comfyui" / "test_matrix.py"), "-q"]))


if __name__ == "__main__":
    sys.exit(main())
