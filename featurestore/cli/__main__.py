"""``python -m featurestore.cli``."""

from __future__ import annotations

import sys

from featurestore.cli.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
