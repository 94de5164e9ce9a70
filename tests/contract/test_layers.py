"""Data goes down, imports point down: the layers of docs/architecture.md as tables, and every import held to them."""

import ast
import re
import subprocess
import sys

import pytest

from support import KERNELS, ROOT
from support.sources import sources

# Folder of kernels/ -> folders that its files may include, besides its own.
CPP_VALUES = {"abi", "core", "platform"}
CPP = {
    "abi": set(),
    "core": {"abi"},
    "platform": {"abi", "core"},
    "layout": CPP_VALUES,
    "quant": CPP_VALUES,
    "mma": CPP_VALUES,
    "cache": CPP_VALUES | {"layout"},
    "iterator": CPP_VALUES | {"layout", "quant", "mma", "cache"},
    "attention": CPP_VALUES | {"layout", "quant", "mma", "cache", "iterator"},
    "entry": CPP_VALUES | {"layout", "quant", "mma", "cache", "iterator", "attention"},
}

# Folder of pyx/ -> its modules from the top down: each may cimport what stands on a later line, of any folder.
CYTHON = [
    ("capi", {"capi"}),
    ("capi", {"capi_call", "capi_cache", "capi_sequence"}),
    ("capi", {"capi_python"}),
    ("capi", {"capi_op"}),
    ("capi", {"capi_view"}),
    ("capi", {"capi_object", "capi_tensor"}),
    ("capi", {"capi_handle", "capi_option"}),
    ("capi", {"capi_error"}),
    ("ops", {"attention_call", "transfer_call"}),
    ("ops", {"cache_call"}),
    ("ops", {"attention_launch", "merge", "page_ops", "row_ops"}),
    ("ops", {"faults", "packed_cache", "packed_table"}),
    ("ops", {"checks", "packers"}),
    ("ops", {"params"}),
    ("launch", {"launcher", "tensor_map"}),
    ("launch", {"kernel_graph", "spans"}),
    ("runtime", {"module"}),
    ("runtime", {"buffer", "event", "graph"}),
    ("interop", {"import_array", "copies"}),
    ("runtime", {"stream"}),
    ("runtime", {"context"}),
    ("runtime", {"host", "host_driver"}),
    ("runtime", {"host_stream"}),
    ("runtime", {"driver"}),
    ("runtime", {"driver_calls"}),
    ("runtime", {"driver_kernels"}),
    ("runtime", {"errors"}),
    ("interop", {"export_array"}),
    ("interop", {"tensor"}),
    ("interop", {"dlpack"}),
    ("runtime", {"driver_table"}),
]
# Imports against that order which wait for the first call: Tensor.wrap is import_array's, which is made of Tensors.
CYTHON_LATE = {("tensor", "import_array")}

# Python module or package of kvit -> what it may import of kvit, besides its own package.
LEAVES = {"errors", "dtypes"}
RUNTIME = LEAVES | {"_native", "registry"}
VIEWS = RUNTIME | {"codecs", "_checks", "_faults", "_parameters"}
PYTHON = {
    "errors": set(),
    "dtypes": {"errors"},
    "codecs": LEAVES,
    "reference": set(),  # numpy only: the definition depends on nothing that it defines
    "_native": LEAVES,
    "registry": LEAVES | {"codecs"},
    "_pages": LEAVES,
    "_checks": LEAVES | {"_native"},
    "_faults": LEAVES | {"_native"},
    "_parameters": RUNTIME | {"codecs", "_checks"},
    "_overlap": LEAVES | {"codecs", "_native"},
    "iterators": RUNTIME,
    "views": VIEWS,
    "turbomind": VIEWS | {"views"},
    "vllm": VIEWS | {"views"},
    "sequence": LEAVES | {"_pages"},
    "_rope_config": set(),
    "rope": LEAVES | {"_rope_config"},
    "_operation": VIEWS | {"views"},
    "transfer": VIEWS | {"views", "_operation", "rope"},
    "_page_lists": VIEWS,
    "maintenance": VIEWS | {"views", "_operation", "_page_lists", "transfer"},
    "_conversion": VIEWS | {"views", "vllm", "_overlap", "_page_lists"},
    "conversion": VIEWS | {"views", "vllm", "_overlap", "_page_lists", "_conversion"},
    "merging": VIEWS,
    "tuning": LEAVES | {"registry"},
    "_explain": LEAVES | {"_native", "tuning"},
    "_storage": VIEWS | {"views"},
    "_batch": VIEWS | {"views", "_storage", "sequence"},
    "attention": VIEWS | {"views", "_operation", "_batch", "tuning", "_explain"},
    "_requantise": VIEWS | {"views", "_storage", "conversion"},
    "cache": VIEWS
    | {"views", "_pages", "_storage", "_batch", "_requantise", "transfer"}
    | {"maintenance", "sequence", "attention", "rope"},
    "transformers": LEAVES
    | {"codecs", "_checks", "views", "cache", "sequence", "attention"},  # nothing in kvit imports it
    "__init__": None,  # names everything, and imports it when it is first used
    "__main__": {"_cli", "errors"},
    "_cli": None,
}

# What kvit may import of others. The command line's niceties and the integration are extras, which only they import.
THIRD_PARTY = {"numpy", "ml_dtypes", "cuda"}
EXTRAS = {"_cli": {"rich", "matplotlib"}, "transformers": {"torch", "transformers"}}


def test_layers_of_the_table_have_no_cycles():
    # A module may only see modules that see less than it does.
    for table in (CPP, PYTHON):
        for name, seen in table.items():
            for other in seen or ():
                assert name not in (table[other] or ()), f"{name} and {other} see each other"


@pytest.mark.parametrize("path", sources(".h", ".cuh", ".hpp", ".cpp", under=("kernels",)), ids=str)
def test_cpp_includes_point_down(path):
    folder = path.parts[1]
    assert folder in CPP, f"kernels/{folder} is not in the table of layers; give it a place in {__file__}"
    for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', (ROOT / path).read_text(encoding="utf-8"), re.M):
        target = included.split("/")[0]
        assert (KERNELS / included).exists(), f'{path} includes "{included}"; includes are relative to kernels/'
        assert target == folder or target in CPP[folder], f"{path} includes {included}; {folder}/ may not see {target}/"
        check_suffix(path, included)


def check_suffix(path, included):
    """Suffixes say who may include: .h plain C for all, .cuh under nvcc and g++, .hpp on the host only."""
    machines = {"platform/cuda.cuh", "platform/host.hpp"}
    if included == "platform/cuda_memory.cuh":
        assert path.as_posix() == "kernels/platform/cuda.cuh", f"{path}: cuda_memory.cuh is a part of cuda.cuh"
    elif included in machines and path.suffix != ".cpp":
        assert path.as_posix() == "kernels/platform/platform.cuh", f"{path}: only platform.cuh picks the machine"
    elif path.suffix == ".h":
        assert included.endswith(".h"), f"{path} is plain C and includes {included}"
    elif path.suffix == ".cuh":
        assert not included.endswith(".hpp"), f"{path} compiles under nvcc and includes the host's {included}"


@pytest.mark.parametrize("path", sources(".cuh", ".h", under=("kernels",)), ids=str)
def test_only_the_platform_speaks_to_the_gpu(path):
    if path.as_posix() in ("kernels/platform/cuda.cuh", "kernels/platform/cuda_memory.cuh"):
        return
    text = re.sub(r"//.*", "", (ROOT / path).read_text(encoding="utf-8"))
    spoken = re.findall(r"\basm\b|\bthreadIdx\b|\bblockIdx\b|\bblockDim\b|\bgridDim\b|__syncthreads|__shfl\w*", text)
    assert not spoken, f"{path} uses {spoken[0]}; kernels/platform/cuda.cuh is the place for it"


def test_no_kernel_is_written_by_hand_as_a_translation_unit():
    assert list(KERNELS.rglob("*.cu")) == []


@pytest.mark.parametrize("path", sources(".pyx", ".pxd", under=("pyx",)), ids=str)
def test_cython_imports_point_down(path):
    rank = {name: index for index, (_, names) in enumerate(CYTHON) for name in names}
    folders = {name: folder for folder, names in CYTHON for name in names}
    assert path.stem in rank, f"{path} is not in the table of layers; give it a place in {__file__}"
    assert path.parent.name == folders[path.stem], f"{path} belongs into pyx/{folders[path.stem]}"
    text = (ROOT / path).read_text(encoding="utf-8")
    seen = re.findall(r"^\s*(?:from|cimport|import) kvit\._native\.(\w+)", text, re.M)
    for names in re.findall(r"^\s*from kvit\._native c?import ([\w, ]+)", text, re.M):
        seen += [name.split()[0] for name in names.split(",")]
    for other in set(seen) - {path.stem}:
        points_down = rank[other] > rank[path.stem] or (path.stem, other) in CYTHON_LATE
        assert points_down, f"{path} imports {other}, which stands above it or beside it"
    # The C API stands on the Python one: it asks the public operations for all that is not on the path of a launch.
    is_api = path.stem.split("_")[0] == "capi"
    for module in re.findall(r"^\s*(?:from|import) kvit\.(\w+)", text, re.M):
        allowed = PYTHON["_native"] | {
            "_native",
            "capi",
        }  # kvit.capi declares kvit.h, whose tensor all may see
        assert module in allowed, f"{path} imports kvit.{module}; _native may see {LEAVES}"
    assert is_api or not re.search(r"^\s*import kvit$", text, re.M), (
        f"{path} imports all of kvit, which stands above it"
    )


def imports_of(path):
    """(module, line) of every import that runs: those under `if TYPE_CHECKING` are for type checkers alone."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped.update(id(inner) for statement in node.body for inner in ast.walk(statement))
    package = list(path.with_suffix("").parts)[:-1]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            # `from kvit import registry` names a module; `from kvit.errors import X` names something inside one.
            if base == ["kvit"]:
                yield from ((f"kvit.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield ".".join(base), node.lineno


@pytest.mark.parametrize("path", sources(".py", under=("kvit",)), ids=str)
def test_python_imports_point_down(path):
    name = path.with_suffix("").parts[1]
    assert name in PYTHON, f"{path} is not in the table of layers; give it a place in {__file__}"
    allowed = PYTHON[name]
    for module, line in imports_of(path):
        head, *rest = module.split(".")
        if head == "kvit":
            other = rest[0] if rest else "__init__"
            assert allowed is None or other == name or other in allowed, (
                f"{path}:{line}: {name} may not import kvit.{other}"
            )
        elif head not in sys.stdlib_module_names:
            assert head in THIRD_PARTY | EXTRAS.get(name, set()), (
                f"{path}:{line}: {head} is no run-time dependency of kvit"
            )


def test_importing_kvit_imports_no_more_than_its_dependencies():
    # In a process of its own: this one has the test tools in memory already.
    code = (
        "import sys; before = set(sys.modules); import kvit\n"
        "new = {name: sys.modules[name] for name in set(sys.modules) - before}\n"
        "print(*(name for name, module in new.items() if '-packages' in (getattr(module, '__file__', None) or '')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= {"kvit"} | THIRD_PARTY
