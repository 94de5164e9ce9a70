"""C programs that start Python themselves and call kvit through its table: built against this Python's library."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import kvit

_SOURCE = """
#include <Python.h>
#include <kvit.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define REQUIRE(fact) do {{ if (!(fact)) {{ fprintf(stderr, "line %d: %s\\n", __LINE__, #fact); exit(1); }} }} while (0)

static const kvit_api* kvit;
static kvit_cache* cache;
static kvit_sequence* sequence;
static uint16_t rows[4 * 64];
static kvit_tensor tensor;

static void begin(void) {{
  signal(SIGINT, SIG_DFL);  // where whoever runs the tests ignores it, Python would have no handler
  Py_InitializeEx(1);       // with Python's handler of SIGINT
  kvit = kvit_import();
  if (kvit == NULL) PyErr_Print();
  REQUIRE(kvit != NULL);
  kvit_cache_options options = {{
      .size = sizeof options, .pages = 64, .page_size = 4, .kv_heads = 1, .head_dim = 64,
      .device_type = KVIT_DEVICE_HOST}};
  REQUIRE(kvit->cache_create(&options, &cache) == KVIT_OK);
  REQUIRE(kvit->sequence_create(cache, &sequence) == KVIT_OK);
  tensor = kvit_dense(rows, KVIT_DTYPE_BF16, KVIT_DEVICE_HOST, 0, 3, (int64_t[]){{4, 1, 64}});
}}

static int append(kvit_sequence* to) {{
  return kvit->cache_append(cache, &to, 1, &tensor, &tensor, NULL, NULL);
}}

static int64_t length_of(kvit_sequence* of) {{
  kvit_sequence_info info = {{.size = sizeof info}};
  return kvit->sequence_query(of, &info) == KVIT_OK ? info.length : -1;
}}

static int64_t free_pages(void) {{
  kvit_cache_info info = {{.size = sizeof info}};
  return kvit->cache_query(cache, &info) == KVIT_OK ? info.num_free_pages : -1;
}}

{functions}

int main(void) {{
{body}
  return 0;
}}
"""


def run_embedding(folder: Path, body: str, functions: str = "") -> subprocess.CompletedProcess[str]:
    """Build and run a program whose main has begin(), a cache and one sequence, and REQUIRE."""
    source, program = folder / "program.c", folder / "program"
    source.write_text(_SOURCE.format(functions=functions, body=body), encoding="utf-8")
    where = sysconfig.get_config_var("LIBDIR") if sysconfig.get_config_var("Py_ENABLE_SHARED") else None
    where = where or sysconfig.get_config_var("LIBPL")
    command = [
        *("gcc", "-std=gnu11", "-Wall", f"-I{sysconfig.get_path('include')}", f"-I{kvit.get_include()}", str(source)),
        *("-o", str(program), f"-L{where}", f"-Wl,-rpath,{where}", f"-lpython{sysconfig.get_config_var('LDVERSION')}"),
        *("-lpthread", "-lm", "-ldl", "-lutil", "-rdynamic"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    environment = {
        **os.environ,
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *filter(None, sys.path)]),
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=60, env=environment)
