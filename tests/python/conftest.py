"""The Python package from the checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from python_package import cpu_ledger, fresh_python  # noqa: E402, F401
