"""The core as any Python program sees it: the repository root on sys.path, no host."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
