"""Tests import their own helpers (tests/graphs.py) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
