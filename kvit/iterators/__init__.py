"""The iterators as objects: print them, draw them, and check the compiled ones against them, byte by byte."""

from kvit.iterators.banks import bank_conflicts, copy_conflicts, matrix_conflicts
from kvit.iterators.box_iterator import BoxIterator, box_sizes
from kvit.iterators.gmem_iterator import GmemIterator
from kvit.iterators.kv_layout import kv_layout, kv_thread_map, param_layout, param_thread_map
from kvit.iterators.own_probe import OwnProbe, probe_own
from kvit.iterators.prediction import Probe, ProbeInput, predict
from kvit.iterators.probe import probe
from kvit.iterators.probe_spec import BoxProbeSpec, ProbeSpec, spec_of
from kvit.iterators.raked_thread_map import Coord, RakedThreadMap
from kvit.iterators.report import Report, report
from kvit.iterators.smem_layout import SmemLayout
from kvit.iterators.svg import layout_svg, pages_svg, thread_map_svg
from kvit.iterators.swizzle import IDENTITY, Swizzle
from kvit.iterators.tensor_layout import TensorLayout
from kvit.iterators.tiles import Fault, FaultKind, Table, boxed_rows, linear_rows, paged_rows

__all__ = [
    "IDENTITY",
    "BoxIterator",
    "BoxProbeSpec",
    "Coord",
    "Fault",
    "FaultKind",
    "GmemIterator",
    "OwnProbe",
    "Probe",
    "ProbeInput",
    "ProbeSpec",
    "RakedThreadMap",
    "Report",
    "SmemLayout",
    "Swizzle",
    "Table",
    "TensorLayout",
    "bank_conflicts",
    "box_sizes",
    "boxed_rows",
    "copy_conflicts",
    "kv_layout",
    "kv_thread_map",
    "layout_svg",
    "linear_rows",
    "matrix_conflicts",
    "pages_svg",
    "paged_rows",
    "param_layout",
    "param_thread_map",
    "predict",
    "probe",
    "probe_own",
    "report",
    "spec_of",
    "thread_map_svg",
]
