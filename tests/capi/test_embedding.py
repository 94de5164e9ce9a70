"""Hosts that are C programs: nobody but them gets an interrupt, and Python may end under their threads."""

from support.embedding import run_embedding


def run(folder, body, functions=""):
    done = run_embedding(folder, body, functions)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


def test_ctrl_c_is_a_status_for_the_call_that_met_it_and_for_no_other(tmp_path):
    # Python's handler only notes the signal; it runs, and raises, within the next call.
    lines = run(
        tmp_path,
        """
  begin();
  for (int round = 0; round < 3; ++round) {
    const int64_t before = length_of(sequence);
    REQUIRE(raise(SIGINT) == 0);
    REQUIRE(append(sequence) == KVIT_ERROR_INTERRUPTED);
    puts(kvit->last_error());
    REQUIRE(PyErr_Occurred() == NULL);
    const int64_t after = length_of(sequence);  // not interrupted once more
    REQUIRE(after == before || after == before + 4);
    REQUIRE(free_pages() == 64 - after / 4);
    REQUIRE(append(sequence) == KVIT_OK);
  }
  REQUIRE(PyRun_SimpleString("sum(range(1000))") == 0);  // nor does Python find anything
  REQUIRE(raise(SIGINT) == 0);
  REQUIRE(kvit->sequence_destroy(sequence) == KVIT_OK);  // runs no Python: the signal waits for who does
  REQUIRE(PyErr_CheckSignals() == -1 && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt));
  PyErr_Clear();
  REQUIRE(free_pages() == 64);
  REQUIRE(Py_FinalizeEx() == 0);
""",
    )
    assert len(lines) == 3
    assert set(lines) == {
        "KeyboardInterrupt: the handler of a signal raised it during the call. A cache has changed as a whole or not "
        "at all, as sequence_query tells, and no page is lost; a handle that was to be destroyed is gone. What was not "
        "done can be called again"
    }


WORKER = """
static void* work(void* result) {
  kvit_sequence* mine;
  int status = kvit->sequence_create(cache, &mine);
  for (long i = 0; status == KVIT_OK; ++i) {
    status = i % 8 == 7 ? kvit->sequence_truncate(mine, 0) : append(mine);
  }
  snprintf(result, 200, "%d %s", status, kvit->last_error());
  return NULL;
}
"""


def test_threads_that_are_in_calls_while_python_ends_come_back_with_a_status(tmp_path):
    # Several ends, since each finds the threads at other places; a thread that Python stops never comes to be joined.
    body = """
  begin();
  char results[6][200] = {{0}};
  pthread_t threads[6];
  for (int i = 0; i < 6; ++i) pthread_create(&threads[i], NULL, work, results[i]);
  Py_BEGIN_ALLOW_THREADS
  usleep(100000);
  Py_END_ALLOW_THREADS
  REQUIRE(Py_FinalizeEx() == 0);
  for (int i = 0; i < 6; ++i) pthread_join(threads[i], NULL);
  for (int i = 0; i < 6; ++i) puts(results[i]);
"""
    words = "16 NoInterpreter: Python has ended, or is about to; call kvit before Py_Finalize"
    for _ in range(3):
        assert run(tmp_path, body, WORKER) == [words] * 6


def test_calls_after_pythons_end_are_refused(tmp_path):
    lines = run(
        tmp_path,
        """
  begin();
  kvit_view* view;
  kvit_op* op;
  REQUIRE(kvit->cache_view(cache, &view) == KVIT_OK);
  kvit_op_options options = {.size = sizeof options, .view = view, .query_heads = 1};
  REQUIRE(kvit->op_create(&options, &op) == KVIT_OK);
  REQUIRE(Py_FinalizeEx() == 0);
  kvit_cache_info info = {.size = sizeof info};
  kvit_view_info shape = {.size = sizeof shape};
  printf("%d ", append(sequence));
  printf("%d ", kvit->cache_query(cache, &info));
  printf("%d ", kvit->op_check(op, NULL, NULL));
  printf("%d ", kvit->attention(op, view, NULL, NULL, NULL, NULL, NULL, NULL));  // refused: it has no arguments
  printf("%d ", kvit->sequence_destroy(sequence));
  printf("%d ", kvit->view_destroy(view));
  printf("%d ", kvit->view_query(view, &shape));  // needs no Python
  printf("%d\\n", (int)shape.page_size);
""",
    )
    assert lines == ["16 16 16 16 16 16 0 4"]
