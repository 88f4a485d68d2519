"""Puts the package's source and the shared fakes on the path: what is in the tree is tested, installed or not."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]
