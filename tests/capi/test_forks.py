"""The C API in children: of os.fork everything goes on, of fork() from C what needs no Python; nothing hangs."""

import sysconfig

import pytest

from support import ROOT
from support.embedding import run_embedding
from support.processes import run_python

PROGRAM = f"""
import os, signal, sys, threading
sys.path.insert(0, {str(ROOT / "tests")!r})
from ctypes import byref, pointer
import numpy as np
from support import capi
from support.capi_cache import PAGES, SharedPages
from support.caches import make_case

api = capi.Api()
given = SharedPages(api)
case = make_case(np.random.default_rng(1), [70])
view, table = api.view(case.view), capi.table_of(case.page_table)
ops = [api.op(view, query_heads=8) for _ in range(2)]
q, out = np.ones((1, 8, 64), case.cache.k.dtype), np.zeros((1, 8, 64), case.cache.k.dtype)
arguments = [pointer(capi.tensor(x)) for x in (q, out)]
def attend(op):
    return api.table.attention(op, view, byref(table), *arguments, None, None, None)
begun = threading.Barrier(5)
def work(i):
    begun.wait()
    while True:  # two threads in the cache's calls, whose lock is always held; two in an operation each
        if i < 2:
            given.call("cache_attention", [])
        else:
            attend(ops[i - 2])
for i in range(4):
    threading.Thread(target=work, args=(i,), daemon=True).start()
begun.wait()

def child():
    assert [attend(op) for op in ops] == [0, 0]
    first = out.copy()
    assert [attend(op) for op in ops] == [0, 0] and (out == first).all() and out.any()
    statuses = []
    for name in ("cache_attention", "cache_append", "sequence_fork", "sequence_truncate"):
        given.call(name, statuses)
    assert statuses == [0] * 4
    given.close()
    for op in ops:
        api.op_destroy(op)
    api.view_destroy(view)
    return 7

found = []
for _ in range(8):
    number = os.fork()
    if number == 0:
        signal.alarm(10)
        status = 1
        try:
            status = child()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(status)
    found.append(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
print(found)
"""


@pytest.mark.skipif(
    sysconfig.get_config_var("Py_GIL_DISABLED"),
    reason="free-threaded Python may leave the lock of a dict or a list with a thread that the child has not",
)
def test_a_child_of_os_fork_uses_and_destroys_what_its_parents_threads_were_using():
    assert run_python(PROGRAM) == (0, str([7] * 8), "")


def test_a_child_that_c_forked_is_refused_what_needs_python(tmp_path):
    body = """
  begin();
  kvit_view* view;
  kvit_op* op;
  REQUIRE(append(sequence) == KVIT_OK);
  REQUIRE(kvit->cache_view(cache, &view) == KVIT_OK);
  kvit_op_options options = {.size = sizeof options, .view = view, .query_heads = 1, .kind = KVIT_OP_GATHER};
  REQUIRE(kvit->op_create(&options, &op) == KVIT_OK);
  int32_t numbers[2] = {0, 4};
  REQUIRE(kvit->sequence_pages(sequence, numbers, 1, NULL) == KVIT_OK);
  kvit_tensor pages = kvit_dense(numbers, KVIT_DTYPE_I32, KVIT_DEVICE_HOST, 0, 2, (int64_t[]){1, 1});
  kvit_tensor lengths = kvit_dense(numbers + 1, KVIT_DTYPE_I32, KVIT_DEVICE_HOST, 0, 1, (int64_t[]){1});
  kvit_page_table table = {.pages = &pages, .lengths = &lengths};
  static uint16_t read[2][4 * 64];
  kvit_tensor k = tensor, v = tensor;
  k.data = read[0], v.data = read[1];
  memset(read, 0xFF, sizeof read);
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    REQUIRE(kvit->gather(op, view, &table, &k, &v, NULL, NULL) == KVIT_OK);  // a launch needs none
    REQUIRE(memcmp(read[0], rows, sizeof rows) == 0);
    REQUIRE(append(sequence) == KVIT_ERROR_NO_INTERPRETER);
    puts(kvit->last_error());
    REQUIRE(kvit->gather(op, view, &table, &k, NULL, NULL, NULL) == KVIT_ERROR_NO_INTERPRETER);
    REQUIRE(kvit->sequence_destroy(sequence) == KVIT_ERROR_NO_INTERPRETER);
    fflush(stdout);
    _exit(7);
  }
  int status;
  REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
  REQUIRE(append(sequence) == KVIT_OK);  // the parent goes on
  REQUIRE(Py_FinalizeEx() == 0);
"""
    done = run_embedding(tmp_path, body)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "NoInterpreter: this process was forked from C, and a thread of its parent may have had Python's locks; fork "
        "by os.fork, or start another program by exec\n"
    )
