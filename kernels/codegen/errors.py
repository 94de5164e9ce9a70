"""What stops a build: one exception with one message that says what to do."""


class BuildError(RuntimeError):
    """The kernels cannot be built; the message names the cause and the remedy."""


class ManifestError(BuildError):
    """A row of kernels/manifest.toml is wrong; the message opens with the row."""
