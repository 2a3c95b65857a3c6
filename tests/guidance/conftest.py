"""Tests of guidance take their SDEs, networks and tools from the catalogue of the laws."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "laws"))
