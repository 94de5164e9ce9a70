"""kernels/manifest.toml as the build reads it, for tests that run over every kernel of a family."""

import functools

from codegen.family import Spec
from codegen.manifest import Manifest, load_manifest
from support import KERNELS


@functools.cache
def the_manifest() -> Manifest:
    """The manifest of this tree, read once."""
    return load_manifest(KERNELS / "manifest.toml")


def manifest(*families: str) -> list[Spec]:
    """The kernels of these families, or of all; an unknown family is an error, so that no test runs over nothing."""
    specs = the_manifest().specs()
    known = {spec.family for spec in specs}
    for family in families:
        assert family in known, f"no family {family} in kernels/manifest.toml; there are {sorted(known)}"
    return [spec for spec in specs if not families or spec.family in families]
