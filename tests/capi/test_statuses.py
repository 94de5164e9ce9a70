"""Every status of the C API is met by a test: those that other files have no place for."""

import re

import pytest

import kvit
from support import ROOT, capi
from support.capi_cache import SharedPages


@pytest.mark.parametrize("error", [RuntimeError("an oversight"), TimeoutError("a handler's"), AttributeError("x")])
def test_an_exception_that_no_status_names_is_internal_and_comes_with_its_words(api, monkeypatch, error):
    given, statuses = SharedPages(api), []

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(kvit.PagedCache, "append", fails)
    given.call("cache_append", statuses)
    for _ in range(1000):  # and Python code that goes on finds nothing
        pass
    assert statuses == [capi.STATUSES.index("INTERNAL")]
    assert api.table.last_error().decode() == f"{type(error).__name__}: {error}"
    monkeypatch.undo()
    given.call("cache_append", statuses)
    assert statuses[1] == 0 and given.check()["cache_append"]
    given.close()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ((), "OUT_OF_MEMORY"),  # CPython 3.11 without memory for a frame, nor for words
        (("error return without exception set",), "OUT_OF_MEMORY"),  # for a frame alone
        (("<built-in> returned NULL without setting an exception",), "INTERNAL"),  # an extension's fault
    ],
)
def test_python_s_own_error_is_a_lack_of_memory_where_it_says_nothing_else(api, monkeypatch, words, status):
    def fails(*_, **__):
        raise SystemError(*words)

    given, statuses = SharedPages(api), []
    monkeypatch.setattr(kvit.Sequence, "truncate", fails)
    given.call("sequence_truncate", statuses)
    assert statuses == [capi.STATUSES.index(status)]
    given.close()


def test_an_error_whose_words_cannot_be_had_keeps_its_status(api, monkeypatch):
    class Wordless(kvit.ShapeError):
        def __str__(self):
            raise MemoryError

    def fails(*_, **__):
        raise Wordless

    given, statuses = SharedPages(api), []
    monkeypatch.setattr(kvit.Sequence, "truncate", fails)
    given.call("sequence_truncate", statuses)
    assert statuses == [capi.STATUSES.index("SHAPE")]
    assert api.table.last_error() == b"Wordless: no memory was left for its words"
    given.close()


def test_a_test_names_every_status():
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "capi").glob("test_*.py"))
    texts = re.sub("UNMET = .*", "", texts)
    unnamed = [name for name in capi.STATUSES[1:] if not re.search(rf'"{name}"|KVIT_ERROR_{name}', texts)]
    assert [name for name in unnamed if name not in UNMET] == []


# What only a GPU or its absence brings about, and a sequence that another thread destroys between two steps of a call.
UNMET = {"DRIVER", "NO_GPU", "SEQUENCE_FREED"}
