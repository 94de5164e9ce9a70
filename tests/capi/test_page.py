"""docs/c_api.md: its blocks of C on caches of many layers and on pages are compiled, run, and do what they say."""

import re

from support import ROOT
from support.embedding import run_embedding

PAGE = (ROOT / "docs" / "c_api.md").read_text(encoding="utf-8")


def block_of(heading):
    """The first block of C under a heading."""
    return re.search(rf"^## {heading}\n.*?^```c\n(.*?)^```", PAGE, re.S | re.M)[1]


def run(folder, body):
    done = run_embedding(folder, body)
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
