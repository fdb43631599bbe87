"""python -m prompteol_utils."""

import sys

from prompteol_utils.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
