"""From kernels/manifest.toml to cubins, the host library and index.json: what setup.py, developers and tests call."""

from codegen.build import build_kernels
from codegen.errors import BuildError, ManifestError
from codegen.family import Family, Spec
from codegen.manifest import Manifest, load_manifest, parse_manifest

__all__ = [
    "BuildError",
    "Family",
    "Manifest",
    "ManifestError",
    "Spec",
    "build_kernels",
    "load_manifest",
    "parse_manifest",
]
