"""What NumPy and the standard library raise for a file whose bytes are damaged."""

import zipfile
import zlib

# A wrong byte of a zip archive may name an unknown compression (NotImplementedError) or a password (RuntimeError).
DAMAGED = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
