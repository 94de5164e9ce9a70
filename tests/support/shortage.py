"""Programs in which memory or threads run short: request number n for them fails, wherever in the process it comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT

# Stands in front of the C library's own. Python, numpy, kvit's modules and its host library all ask here.
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>

extern void* __libc_malloc(size_t bytes);
extern void* __libc_calloc(size_t count, size_t bytes);
extern void* __libc_realloc(void* memory, size_t bytes);

enum { kMemory, kThreads, kResources };
static int first[kResources], last[kResources], asked[kResources], failed;

static int fails(int resource) {
  if (__atomic_load_n(&last[resource], __ATOMIC_SEQ_CST) == 0) return 0;
  const int number = __atomic_add_fetch(&asked[resource], 1, __ATOMIC_SEQ_CST);
  if (number < first[resource] || number > last[resource]) return 0;
  __atomic_add_fetch(&failed, 1, __ATOMIC_SEQ_CST);
  return 1;
}

// Requests `number` to `number + count - 1` from now on fail: those that come after do not.
void shortage_begin(int resource, int number, int count) {
  asked[resource] = failed = 0;
  first[resource] = number;
  __atomic_store_n(&last[resource], number + count - 1, __ATOMIC_SEQ_CST);
}

// How many failed.
int shortage_end(void) {
  for (int i = 0; i < kResources; ++i) __atomic_store_n(&last[i], 0, __ATOMIC_SEQ_CST);
  return failed;
}

void* malloc(size_t bytes) {
  if (!fails(kMemory)) return __libc_malloc(bytes);
  errno = ENOMEM;
  return NULL;
}

void* calloc(size_t count, size_t bytes) {
  if (!fails(kMemory)) return __libc_calloc(count, bytes);
  errno = ENOMEM;
  return NULL;
}

void* realloc(void* memory, size_t bytes) {
  if (!fails(kMemory)) return __libc_realloc(memory, bytes);
  errno = ENOMEM;
  return NULL;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*body)(void*), void* context) {
  static int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  if (fails(kThreads)) return EAGAIN;
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "pthread_create");
  return real(thread, how, body, context);
}
"""

_PRELUDE = f"""
import contextlib, ctypes, faulthandler, itertools, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
faulthandler.enable()
shortage = ctypes.CDLL(None)
MEMORY, THREADS = 0, 1
ERRORS = []

def short_of(resource, number, count, call):
    "Whether call() met the shortage, with its error, if any, in ERRORS."
    caught = failed = None
    try:
        shortage.shortage_begin(resource, number, count)
        call()
    except BaseException as error:
        caught = error
    while failed is None:
        try:
            failed = shortage.shortage_end()
        except MemoryError:  # a call of ctypes asks for memory too
            pass
    if caught is not None:
        ERRORS.append(caught.with_traceback(None))  # whose frames would keep what they have
    return failed > 0
"""


def run_short(folder: Path, program: str, *arguments: str) -> str:
    """What a program prints that may ask for short_of(resource, number, count, call). Fails where it does not end well.

    folder     may be written
    arguments  its sys.argv[1:]
    """
    library = folder / "shortage.so"
    if not library.exists():
        command = ["gcc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
        done = subprocess.run(command, input=_SOURCE, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        # Python's own small blocks come from malloc too, so that each of them may be the one that is missing.
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
