# Launches that are prepared first, and given to the driver together.
from kvit._native.stream import Stream

class PreparedLaunch:
    """A kernel with its grid and parameters. What these point to is the preparer's to keep."""

def launch_all(
    launches: list[PreparedLaunch], stream: Stream, after: tuple[object, str, object] | None = None
) -> None: ...
