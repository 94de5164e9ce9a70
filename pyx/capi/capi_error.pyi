# How the C API says what went wrong: a status, and words that each thread has for itself.
from kvit.errors import KvitError

class ArgumentError(KvitError, ValueError):
    """An argument of the C API that C alone can get wrong: NULL, a struct of an unknown size, an unknown option."""
