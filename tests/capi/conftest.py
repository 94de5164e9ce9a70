"""The C API under test: its table, and the example hosts, built as their readers build them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvit
from support import ROOT, capi
from support.capi_batches import Batched


@pytest.fixture(scope="session")
def api():
    return capi.Api()


def build(name, folder, **environment):
    """The extension module of examples/<name>, built by its own setup.py: the file."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder / "lib", "--build-temp", folder / "temp"]
    source = folder / "source"
    source.mkdir()
    for path in (ROOT / "examples" / name).iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())  # Cython writes beside its source
    environment = {**os.environ, **environment}
    done = subprocess.run(list(map(str, command)), cwd=source, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "lib").glob(f"{name}.*.so")
    return path


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def c_host_file(tmp_path_factory):
    return build("c_host", tmp_path_factory.mktemp("c_host"))


@pytest.fixture(scope="session")
def c_host(c_host_file):
    return load("c_host", c_host_file)


@pytest.fixture(scope="session", params=[1, 2, 3, 4, 5, 6])
def older_c_host(request, tmp_path_factory):
    """The same host, compiled against kvit.h as it was when it had an older version."""
    version = request.param
    folder = tmp_path_factory.mktemp("older_c_host")
    for header in Path(kvit.get_include()).glob("*.h"):
        text = header.read_text(encoding="utf-8")
        text = re.sub(r"(#define KVIT_API_VERSION) \d+", rf"\1 {version}", text)
        if version < 3:
            text = re.sub(
                r"(  // attention, since version 3:.*\n)(  //.*\n)*  int32_t split_tokens;", "  int32_t reserved;", text
            )
        if version < 4:
            text = re.sub(r"\n.*since version 4: Ctrl-C.*", "", text)
        for later in range(version + 1, 8):
            text = re.sub(rf"\n.*since version {later}(:.*)?$", "", text, flags=re.M)
            text = re.sub(rf"\n// (?:(?!\n//).)*?[Ss]ince version {later}\.\n.*?\n\}} \w+;\n", "", text, flags=re.S)
            # From there to the end of the struct, or to what a later version added.
            text = re.sub(rf"\n  // Since version {later}:.*?(?=\n\}}|\n  // Since version)", "", text, flags=re.S)
        (folder / header.name).write_text(text, encoding="utf-8")
    assert ("cache_gather" in (folder / "kvit.h").read_text(encoding="utf-8")) == (version >= 2)
    types = (folder / "kvit_types.h").read_text(encoding="utf-8")
    for field in ("split_tokens", "int32_t launch;", "reads_ahead"):
        assert (field in types) == (version >= 3)
    for field in ("KVIT_ERROR_INTERRUPTED", "window_left", "takes_spans"):
        assert (field in types) == (version >= 4)
    for field in ("kvit_rope", "norm_eps"):
        assert (field in types) == (version >= 5)
    texts = types + (folder / "kvit.h").read_text(encoding="utf-8")
    texts += (folder / "kvit_caches.h").read_text(encoding="utf-8")
    for field in ("kvit_step", "kvit_layer_spec", "num_layers", "KVIT_OP_COPY_PAGES", "KVIT_STORAGE", "v_dim"):
        assert (field in texts) == (version >= 6)
    for field in ("kvit_batch", "kvit_swapped", "cache_swap_in"):
        assert field not in texts
    return load("c_host", build("c_host", folder, CFLAGS=f"-I{folder}"))


@pytest.fixture(scope="session")
def cython_host(tmp_path_factory):
    return load("cython_host", build("cython_host", tmp_path_factory.mktemp("cython_host")))


@pytest.fixture
def new_batch(api, rng):
    """Makes caches with a batch, both through the table and in Python: support.capi_batches.Batched."""
    made = []

    def make(*arguments, **words):
        made.append(Batched(api, rng, *arguments, **words))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
