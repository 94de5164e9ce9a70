"""docs/c_api.md: its blocks of C on caches and on pages are compiled, run, and do what they say."""

import re

from support import ROOT
from support.embedding import run_embedding

PAGE = (ROOT / "docs" / "c_api.md").read_text(encoding="utf-8")


def block_of(heading):
    """The first block of C under a heading."""
    return re.search(rf"^## {heading}\n.*?^```c\n(.*?)^```", PAGE, re.S | re.M)[1]


def run(folder, body, functions=""):
    done = run_embedding(folder, body, functions)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_step_of_many_layers_is_taken(tmp_path):
    # The rows are zeros, so that every output is: what is computed, tests/capi/test_steps.py compares.
    found = run(
        tmp_path,
        f"""
  begin();
  static uint16_t k_rows[47 * 2 * 64], v_rows[47 * 2 * 64], q_rows[47 * 8 * 64], out_rows[47 * 8 * 64];
  memset(out_rows, 0xff, sizeof out_rows);
{block_of("Caches of many layers")}
  REQUIRE(out_rows[0] == 0 && out_rows[47 * 8 * 64 - 1] == 0);
  REQUIRE(kvit->cache_query(model, &info) == KVIT_OK);
  printf("%d %d %d %d", info.num_layers, (int)length_of(both[0]), (int)length_of(both[1]), (int)info.num_free_pages);
  for (int i = 0; i < 2; ++i) REQUIRE(kvit->sequence_destroy(both[i]) == KVIT_OK);
  REQUIRE(kvit->cache_destroy(model) == KVIT_OK);
  REQUIRE(Py_FinalizeEx() == 0);
""",
    )
    assert found == ["4", "30", "17", str(64 - 2 - 2)]


# A model of two layers with sequences of 5 and 2 tokens, whose K and V are zeros.
MODEL = """
  begin();
  static uint16_t zeros[7 * 2 * 64];
  kvit_cache_options of_model = {.size = sizeof of_model, .pages = 32, .page_size = 4, .kv_heads = 2, .head_dim = 64,
                                 .device_type = KVIT_DEVICE_HOST, .num_layers = 2};
  kvit_cache* model;
  kvit_sequence* both[2];
  kvit_cache_info info = {.size = sizeof info};
  REQUIRE(kvit->cache_create(&of_model, &model) == KVIT_OK && kvit->cache_query(model, &info) == KVIT_OK);
  for (int i = 0; i < 2; ++i) REQUIRE(kvit->sequence_create(model, &both[i]) == KVIT_OK);
  kvit_tensor prompt = kvit_dense(zeros, KVIT_DTYPE_BF16, KVIT_DEVICE_HOST, 0, 3, (int64_t[]){7, 2, 64});
  const kvit_tensor* of_layers[] = {&prompt, &prompt};
  const int64_t counts[] = {5, 2};
  REQUIRE(kvit->cache_append_layers(model, both, 2, of_layers, of_layers, 2, counts, NULL) == KVIT_OK);
"""

# Graphs are the driver's on a GPU. Those of the host backend are had from Python alone.
GRAPHS = """
static void python(const char* code) { REQUIRE(PyRun_SimpleString(code) == 0); }
static void begin_capture(kvit_stream s) { python("capture = kvit.Graph.capture(stream); g = capture.__enter__()"); }
static void end_capture(kvit_stream s) { python("capture.__exit__(None, None, None)"); }
static void launch_graph(kvit_stream s) { python("g.launch()"); }

static kvit_stream new_stream(void) {
  python("import kvit; stream = kvit.Stream('host')");
  PyObject* made = PyObject_GetAttrString(PyImport_AddModule("__main__"), "stream");
  PyObject* handle = PyObject_GetAttrString(made, "handle");
  return (kvit_stream)PyLong_AsVoidPtr(handle);
}
"""


def test_steps_of_a_batch_are_launches_of_a_graph(tmp_path):
    # Keys are zeros, so that every token weighs as much as another; values are 0 in the prompt, and 1 in the 40 tokens
    # that the launches append.
    found = run(
        tmp_path,
        f"""
{MODEL}
  kvit_stream stream = new_stream();
  kvit_step* step;
  static uint16_t of_keys[2 * 2 * 64], of_values[2 * 2 * 64], of_queries[2 * 8 * 64], results[2][2 * 8 * 64];
  for (int i = 0; i < 2 * 2 * 64; ++i) of_values[i] = 0x3f80;  // 1 in bfloat16
  kvit_tensor k[2], v[2], q[2], out[2];
  for (int i = 0; i < 2; ++i) {{
    const int64_t rows[] = {{2, 2, 64}}, queries[] = {{2, 8, 64}};
    k[i] = kvit_dense(of_keys, KVIT_DTYPE_BF16, KVIT_DEVICE_HOST, 0, 3, rows);
    v[i] = kvit_dense(of_values, KVIT_DTYPE_BF16, KVIT_DEVICE_HOST, 0, 3, rows);
    q[i] = kvit_dense(of_queries, KVIT_DTYPE_BF16, KVIT_DEVICE_HOST, 0, 3, queries);
    out[i] = kvit_dense(results[i], KVIT_DTYPE_BF16, KVIT_DEVICE_HOST, 0, 3, queries);
  }}
{block_of("Batches").replace("i < 100", "i < 40")}
  for (int i = 0; i < 2; ++i) {{
    for (int row = 0; row < 2; ++row) {{
      const uint32_t bits = (uint32_t)results[i][row * 8 * 64] << 16;
      float value;
      memcpy(&value, &bits, sizeof value);
      printf("%.3f ", value);
    }}
    printf("%d ", (int)length_of(both[i]));
  }}
""",
        GRAPHS,
    )
    assert [int(found[i]) for i in (2, 5)] == [45, 42]
    for i in (0, 1, 3, 4):
        assert abs(float(found[i]) - 40 / [45, 42][i % 3]) < 2**-8  # bfloat16 has 8 bits


def test_a_sequence_goes_to_host_memory_and_comes_back(tmp_path):
    found = run(
        tmp_path,
        f"""
{MODEL}
{block_of("Sequences in host memory")}
  printf("%d %d %d ", (int)of_swapped.length, (int)of_swapped.num_pages, (int)of_swapped.bytes);
  printf("%d", (int)length_of(both[0]));
""",
    )
    assert found == ["5", "2", str(2 * 2 * 2 * 4 * 2 * 64 * 2), "5"]  # layers, K and V, pages, of so many bytes


def test_pages_are_converted_by_an_operation(tmp_path):
    # Two pages of a cache in bfloat16 into one of int8: parameters of rows are written over what they were.
    found = run(
        tmp_path,
        f"""
  begin();
  static uint16_t k_pool[2 * 4 * 2 * 64], pairs[2][2 * 4 * 2 * 2];
  static uint8_t codes[2][2 * 4 * 2 * 64];
  int32_t ids[] = {{1, 0}};
  const int64_t pool[] = {{2, 4, 2, 64}}, params[] = {{2, 4, 2, 2}}, two[] = {{2}};
  memset(pairs, 0xff, sizeof pairs);
  kvit_tensor k = kvit_dense(k_pool, KVIT_DTYPE_BF16, KVIT_DEVICE_HOST, 0, 4, pool);
  kvit_tensor coded[2], of_rows[2];
  for (int i = 0; i < 2; ++i) {{
    coded[i] = kvit_dense(codes[i], KVIT_DTYPE_U8, KVIT_DEVICE_HOST, 0, 4, pool);
    of_rows[i] = kvit_dense(pairs[i], KVIT_DTYPE_BF16, KVIT_DEVICE_HOST, 0, 4, params);
  }}
  kvit_tensor from = kvit_dense(ids, KVIT_DTYPE_I32, KVIT_DEVICE_HOST, 0, 1, two), to = from;
  kvit_view_options of_plain = {{.size = sizeof of_plain, .k = &k, .v = &k}};
  kvit_view_options of_packed = {{.size = sizeof of_packed, .k = &coded[0], .v = &coded[1], .k_params = &of_rows[0],
                                 .v_params = &of_rows[1], .dtype = KVIT_DTYPE_BF16}};
  kvit_view *plain, *packed;
  kvit_op* convert;
  REQUIRE(kvit->view_create(&of_plain, &plain) == KVIT_OK && kvit->view_create(&of_packed, &packed) == KVIT_OK);
{block_of("Pages by an operation")}
  for (int i = 0; i < 32; ++i) REQUIRE(pairs[0][i] != 0xffff && pairs[1][i] != 0xffff);
  puts("converted");
""",
    )
    assert found == ["converted"]
