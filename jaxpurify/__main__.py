"""`python -m jaxpurify` is the `jaxpurify` command."""

import sys

from jaxpurify.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
