"""Puts this folder on the path, as a project's own folder is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
