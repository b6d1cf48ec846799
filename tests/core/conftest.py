"""The core as any Python program sees it: the repository root on sys.path, no host. The folder itself is for `papers`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
