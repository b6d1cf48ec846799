"""The core as any Python program sees it: the repository root on sys.path, no host. The two folders are for helpers."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "core"), str(TESTS / "shared")]
