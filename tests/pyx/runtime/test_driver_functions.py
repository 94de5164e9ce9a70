"""Drivers of CUDA 12.0 to 13.0, by benchmarks/idle_driver.c: what kvit asks them for, and what it hands over."""

import re

import pytest

from kvit._native import driver
from support import ROOT
from support.processes import run_idle

VERSIONS = [12000, 12040, 12080, 13000]
# What a wheel has, and a file of which an old driver takes none.
WHEEL = {"archs": ["sm_80", "sm_90", "compute_80", "compute_90"]}
NEWER = {"archs": ["sm_90"], "drivers": {"sm_90": [13, 0]}}

# Attention, by launch and by graph, append, copies both ways, a tensor map, and the time between two events.
CALLS = """
import host_calls, kvit, numpy
case = host_calls.Case("cuda:0")
start, end = kvit.Event("cuda:0"), kvit.Event("cuda:0")
start.record(case.stream)
for call in (case.attend_by_graph, case.write, case.write_by_graph, case.attend):
    call()
end.record(case.stream)
end.synchronize()
kvit.Buffer.from_numpy(numpy.zeros(8, "float32"), "cuda:0").numpy()
from kvit._native import driver
found = {
    "ms": start.elapsed_ms(end),
    "launches": count("launches"),
    "missing": driver.missing_functions(),
    "overlap": ctypes.c_int.in_dll(library, "idle_overlap").value,
    "target": case.attention.kernel.target(kvit.Device.of("cuda:0").compute_capability),
    "copies": case.attention.kernel.axes["copies"],
}
"""


def logged(path):
    """What the driver wrote down: {function: whether each request for it was met}, and [(kind, version, status)]."""
    asked, handed = {}, []
    for line in path.read_text().splitlines():
        words, name, number, status = line.split()
        if words == "ask":
            asked.setdefault(name, []).append(status == "0")
        else:
            handed.append((name, int(number), int(status)))
    return asked, handed


def test_the_list_of_functions_is_that_of_the_sources():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "pyx").rglob("*.pyx")]
    called = {name for source in sources for name in re.findall(r"cydriver\.(cu[A-Z]\w+)\(", source)}
    # cuda.h's cuGraphInstantiate is this function of the driver; that of 12.8 is not called at all.
    called = called - {"cuGraphInstantiate"} | {"cuGraphInstantiateWithFlags", "cuEventElapsedTime"}
    assert sorted(called) == sorted(driver.FUNCTIONS)


@pytest.mark.parametrize("cuda", VERSIONS)
def test_a_driver_of_cuda_12_has_all_that_a_call_needs(cuda, tmp_path):
    log = tmp_path / "log"
    setting = {"IDLE_DRIVER_CUDA": str(cuda), "IDLE_DRIVER_LOG": str(log)}
    found = run_idle(tmp_path, CALLS, kernels=WHEEL, **setting)
    assert found["missing"] == [] and found["ms"] >= 0 and found["launches"] >= 2
    assert (found["target"], found["copies"], found["overlap"]) == ("sm_90", "tma", 1)
    asked, handed = logged(log)
    # Each function is found in some version; cuda-bindings ask for far more, of which a driver of 12.0 lacks much, and
    # one of 13.0 what releases of them that are newer than it ask for.
    assert all(any(asked[name]) for name in driver.FUNCTIONS)
    assert cuda >= 13000 or not all(all(met) for met in asked.values())
    # Raw cubins of ELF ABI version 7, which all of them take: none has to unpack anything.
    assert handed and set(handed) == {("cubin", 7, 0)}


@pytest.mark.parametrize(
    ("capability", "archs", "target", "copies", "overlap"),
    [
        (100, WHEEL["archs"], "compute_90", "tma", 1),
        (120, WHEEL["archs"], "compute_90", "cp_async", 1),  # 99 KB of shared memory
        (100, ["sm_80", "compute_80"], "compute_80", "tma", 0),  # its code has no launch in front to wait for
        (86, WHEEL["archs"], "sm_80", "cp_async", 0),
    ],
)
def test_the_target_that_is_loaded_decides_whether_launches_begin_early(
    capability, archs, target, copies, overlap, tmp_path
):
    log = tmp_path / "log"
    setting = {"IDLE_DRIVER_CC": str(capability), "IDLE_DRIVER_CUDA": "12080", "IDLE_DRIVER_LOG": str(log)}
    found = run_idle(tmp_path, CALLS, kernels={"archs": archs}, **setting)
    assert (found["target"], found["overlap"]) == (target, overlap)
    assert found["copies"] == copies or capability == 100
    assert set(logged(log)[1]) == {("ptx", 80, 0) if target.startswith("compute") else ("cubin", 7, 0)}


def test_a_file_that_a_driver_is_too_old_for_is_not_handed_to_it(tmp_path):
    program = """
from kvit._native.module import Kernel
from kvit.errors import KernelMissing
from kvit.selection import registry
try:
    Kernel.load(registry.find("copy_pages", access=16), "cuda:0")
except KernelMissing as error:
    found = str(error)
"""
    log = tmp_path / "log"
    setting = {"IDLE_DRIVER_CUDA": "12040", "IDLE_DRIVER_LOG": str(log)}
    message = run_idle(tmp_path, program, kernels=NEWER, **setting)
    assert "copy_pages_all.cubin.xz needs a driver of CUDA 13.0 or newer; this one is of CUDA 12.4" in message
    assert "Update the NVIDIA driver" in message
    assert logged(log)[1] == []


@pytest.mark.parametrize(("content", "words"), [(b"\x7fELF", "is damaged"), (None, "cannot be read")])
def test_a_file_that_cannot_be_unpacked_is_named_and_nothing_is_handed_over(content, words, tmp_path):
    program = """
from kvit._native.module import Kernel
from kvit.errors import KernelMissing
from kvit.selection import registry
entry = registry.find("copy_pages", access=16)
entry.file("sm_90").unlink()
if sys.argv[2]:
    entry.file("sm_90").write_bytes(bytes.fromhex(sys.argv[2]))
try:
    Kernel.load(entry, "cuda:0")
except KernelMissing as error:
    found = str(error)
"""
    log = tmp_path / "log"
    message = run_idle(tmp_path, program, "" if content is None else content.hex(), IDLE_DRIVER_LOG=str(log))
    assert "sm_90/copy_pages_all.cubin.xz" in message and words in message and "reinstall kvit" in message
    assert logged(log)[1] == []


INFO = """
import contextlib, io
from kvit.__main__ import main
text = io.StringIO()
with contextlib.redirect_stdout(text):
    assert main(["info"]) == 0
found = text.getvalue()
"""


def test_info_says_what_the_driver_lacks_and_what_it_is_too_old_for(tmp_path):
    setting = {"IDLE_DRIVER_CUDA": "12040", "IDLE_DRIVER_LACKS": "cuGraphExecKernelNodeSetParams"}
    text = run_idle(tmp_path, INFO, kernels=NEWER, **setting)
    assert "for drivers of CUDA 13.0 or newer: sm_90\n" in text
    assert "CUDA 12.4\n  without what kvit calls: cuGraphExecKernelNodeSetParams; update the NVIDIA driver\n" in text
    assert "not sm_90, which needs a driver of CUDA 13.0" in text


def test_info_says_what_runs_and_how_many_kernels_do_not(tmp_path):
    text = run_idle(tmp_path, INFO, kernels=WHEEL, IDLE_DRIVER_CUDA="12080", IDLE_DRIVER_CC="120")
    assert "for drivers of CUDA 12.0 or newer: sm_80, sm_90, compute_80, compute_90\n" in text
    assert re.search(r"12\.0 .* \d+ kernels of compute_90, not \d+ others\n", text + "\n")  # more shared memory
    assert "without what kvit calls" not in text
