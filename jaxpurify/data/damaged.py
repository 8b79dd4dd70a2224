"""What NumPy and the standard library raise for a file whose bytes are damaged."""

import tokenize
import zipfile
import zlib

# A wrong byte of a zip archive may name an unknown compression (NotImplementedError) or a password (RuntimeError), one
# of an array's header leave a bracket open (TokenError, SyntaxError) or ask for more memory than there is.
DAMAGED = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, MemoryError,
)  # fmt: skip
