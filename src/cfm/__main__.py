"""``python -m cfm``."""

from __future__ import annotations

import sys

from cfm.cli import main

if __name__ == "__main__":
    sys.exit(main())
