"""Data goes down, imports point down: the layers of docs/architecture.md as tables, and every import held to them."""

import ast
import graphlib
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
    "iterator": CPP_VALUES | {"layout", "quant", "cache"},
    "schedule": CPP_VALUES | {"mma", "cache", "quant"},
    "pipeline": CPP_VALUES | {"layout", "quant", "cache", "iterator", "schedule"},
    "attention": CPP_VALUES | {"layout", "quant", "mma", "schedule"},
    "transfer": CPP_VALUES | {"layout", "quant", "cache"},
    "entry": CPP_VALUES | {"quant", "cache", "iterator", "layout", "schedule", "pipeline", "attention", "transfer"},
}

# Folder of pyx/ -> its modules from the top down: each may cimport what stands on a later line, of any folder.
CYTHON = [
    ("xla", {"xla_handlers"}),
    ("xla", {"xla_abi"}),
    ("capi", {"capi"}),
    ("capi", {"capi_batch", "capi_swap"}),
    ("capi", {"capi_call", "capi_cache", "capi_layer", "capi_sequence", "capi_step", "capi_upkeep"}),
    ("capi", {"capi_pinned", "capi_python", "capi_spec"}),
    ("capi", {"capi_op"}),
    ("capi", {"capi_cache_args", "capi_rope", "capi_view"}),
    ("capi", {"capi_object", "capi_tensor"}),
    ("capi", {"capi_handle", "capi_option"}),
    ("capi", {"capi_entry"}),
    ("capi", {"capi_error"}),
    ("cache", {"sent_tables"}),
    ("cache", {"growth", "page_changes"}),
    ("cache", {"page_lists"}),
    ("ops", {"attention_call", "transfer_call"}),
    ("ops", {"cache_call"}),
    ("ops", {"attention_launch", "merge", "page_ops", "row_ops", "select_op"}),
    ("ops", {"faults", "packed_cache", "packed_table", "prepared"}),
    ("ops", {"checks", "overlaps", "packers"}),
    ("ops", {"params"}),
    ("launch", {"launcher", "tensor_map"}),
    ("launch", {"kernel_graph", "spans"}),
    ("runtime", {"module"}),
    ("runtime", {"buffer", "event", "graph"}),
    ("interop", {"import_array", "copies"}),
    ("interop", {"import_dlpack"}),
    ("interop", {"array_type"}),
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
    ("interop", {"elements"}),
    ("interop", {"whole_numbers"}),
    ("interop", {"dlpack"}),
    ("runtime", {"driver_table", "forks"}),
]
# Imports against that order which wait for the first call: Tensor.wrap is import_array's, which is made of Tensors.
CYTHON_LATE = {("tensor", "import_array")}

# Python module or package of kvit -> what it may import of kvit, besides its own package. Imports for type checkers
# alone count too, and so do those that wait for a call.
LEAVES = {"errors", "dtypes"}
PYTHON = {
    "errors": set(),
    "dtypes": {"errors"},
    "codecs": LEAVES,
    "reference": set(),  # numpy only: the definition depends on nothing that it defines
    "selection": LEAVES | {"codecs"},
    "_native": LEAVES | {"codecs", "selection"},
    "_checks": LEAVES | {"_native"},
    "layouts": LEAVES | {"codecs", "_native", "_checks"},
    "ops": LEAVES | {"codecs", "_native", "_checks", "selection", "layouts"},
    "cache": LEAVES | {"codecs", "_native", "_checks", "selection", "layouts", "ops"},
    "iterators": LEAVES | {"_native", "selection"},
    "transformers": LEAVES | {"codecs", "_checks", "layouts", "cache"},  # nothing in kvit imports these three
    "torch": LEAVES | {"_native", "layouts", "ops"},
    "jax": LEAVES | {"_native", "_checks", "layouts", "ops"},
    "__init__": LEAVES | {"_native", "layouts", "ops", "cache"},
    "_cli": LEAVES | {"codecs", "reference", "_native", "selection", "layouts", "iterators", "__init__"},
    "__main__": {"errors", "_cli"},
}

# Names with an underscore that others have made for all: of named tuples, of transformers' configurations, and of what
# compiled classes hold.
NAMES_OF_OTHERS = {"_asdict", "_fields", "_replace", "_attn_implementation"}

# What kvit may import of others. The command line's niceties and the integration are extras, which only they import.
THIRD_PARTY = {"numpy", "ml_dtypes", "cuda"}
EXTRAS = {
    "_cli": {"rich", "matplotlib"},
    "jax": {"jax"},
    "torch": {"torch"},
    "transformers": {"torch", "transformers"},
}


@pytest.mark.parametrize("table", [CPP, PYTHON], ids=["C++", "Python"])
def test_layers_of_the_table_have_no_cycles(table):
    graphlib.TopologicalSorter(table).prepare()  # raises CycleError


def test_every_layer_of_the_tables_exists():
    assert [name for name in CPP if not (KERNELS / name).is_dir()] == []
    layers = {path.with_suffix("").parts[1] for path in sources(".py", under=("kvit",))}
    assert set(PYTHON) == layers


# What a machine's header is made of.
PARTS = {
    **{f"cuda_{part}.cuh": "cuda.cuh" for part in ("math", "mma", "memory", "wgmma")},
    **{f"host_{part}.hpp": "host.hpp" for part in ("mma", "wgmma")},
}


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
    parts = {f"platform/{part}": f"platform/{whole}" for part, whole in PARTS.items()}
    if included in parts:
        assert path.as_posix() == f"kernels/{parts[included]}", f"{path}: {included} is a part of {parts[included]}"
    elif included in machines and path.suffix != ".cpp":
        assert path.as_posix() == "kernels/platform/platform.cuh", f"{path}: only platform.cuh picks the machine"
    elif path.suffix == ".h":
        assert included.endswith(".h"), f"{path} is plain C and includes {included}"
    elif path.suffix == ".cuh":
        assert not included.endswith(".hpp"), f"{path} compiles under nvcc and includes the host's {included}"


@pytest.mark.parametrize("path", sources(".cuh", ".h", under=("kernels",)), ids=str)
def test_only_the_platform_speaks_to_the_gpu(path):
    if path.name in {"cuda.cuh"} | {part for part, whole in PARTS.items() if whole == "cuda.cuh"}:
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
        assert module in allowed, f"{path} imports kvit.{module}; _native may see {allowed}"
    assert is_api or not re.search(r"^\s*import kvit$", text, re.M), (
        f"{path} imports all of kvit, which stands above it"
    )


def imports_of(path):
    """(module, name or None, line) of every import, those under `if TYPE_CHECKING` and within functions too."""
    package = list(path.with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((".".join(base), alias.name, node.lineno) for alias in node.names)


def module_of(path):
    """The dotted name of a file of kvit or of a declaration of a compiled module."""
    if path.suffix == ".pyi":
        return f"kvit._native.{path.stem}"
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files():
    return sources(".py", ".pyi", under=("kvit", "pyx"))


@pytest.mark.parametrize("path", python_files(), ids=str)
def test_python_imports_point_down(path):
    name = "_native" if path.suffix == ".pyi" else path.with_suffix("").parts[1]
    assert name in PYTHON, f"{path} is not in the table of layers; give it a place in {__file__}"
    allowed = PYTHON[name]
    for module, imported, line in imports_of(path):
        head, *rest = module.split(".")
        if head == "kvit":
            # `from kvit import codecs` names a module; `from kvit.errors import X` names something inside one.
            other = rest[0] if rest else imported or "__init__"
            assert other == name or other in allowed, f"{path}:{line}: {name} may not import kvit.{other}"
        elif head not in sys.stdlib_module_names:
            assert head in THIRD_PARTY | EXTRAS.get(name, set()), (
                f"{path}:{line}: {head} is no run-time dependency of kvit"
            )


def test_no_python_modules_import_each_other_in_a_circle():
    modules = {module_of(path): path for path in python_files()}
    graph = {}
    for name, path in modules.items():
        graph[name] = seen = set()
        for module, imported, _ in imports_of(path):
            inner = f"{module}.{imported}"
            seen.add(inner if inner in modules else module)
        # A package's own file runs before its modules; that is an import of nothing but what stands in it.
        seen &= modules.keys() - {name}
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def private_names(path):
    """(name, line) of every attribute with an underscore in front that is read of an object of another class."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    own = {}  # attribute -> names that the class around it has of its own: `self._x` somewhere, or a method `_x`
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ClassDef):
            inside = [node for node in ast.walk(scope) if isinstance(node, ast.Attribute)]
            names = {node.attr for node in inside if is_self(node.value)}
            names |= {node.name for node in scope.body if isinstance(node, ast.FunctionDef)}
            own |= {node: names for node in inside}
    for node in ast.walk(tree):
        is_private = isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr)
        if is_private and not is_self(node.value) and node.attr not in own.get(node, ()):
            yield node.attr, node.lineno


def is_self(node):
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


@pytest.mark.parametrize("path", sources(".py", under=("kvit",)), ids=str)
def test_nothing_reads_what_another_class_keeps_for_itself(path):
    found = [f"{path}:{line}: {name}" for name, line in private_names(path) if name not in NAMES_OF_OTHERS]
    assert found == []


def test_importing_kvit_imports_no_more_than_its_dependencies():
    # In a process of its own: this one has the test tools in memory already.
    code = (
        "import sys; before = set(sys.modules); import kvit\n"
        "new = {name: sys.modules[name] for name in set(sys.modules) - before}\n"
        "print(*(name for name, module in new.items() if '-packages' in (getattr(module, '__file__', None) or '')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= {"kvit"} | THIRD_PARTY
