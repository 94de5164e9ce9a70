// Allocations that fail on request: preloaded into a process, which sets the numbers below in its own memory.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

// Requests of each kind until one fails; below 0: none does. After a failure no more fail, or all of the kind do.
int shortage_left_memory = -1, shortage_left_threads = -1, shortage_left_pages = -1;
int shortage_lasts;
int shortage_failed;  // how many did

static uintptr_t loader_low, loader_high;

static int find_loader(struct dl_phdr_info* library, size_t size, void* context) {
  (void)size, (void)context;
  if (strstr(library->dlpi_name, "ld-linux") == NULL) return 0;
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const uintptr_t begin = library->dlpi_addr + library->dlpi_phdr[i].p_vaddr;
    if (library->dlpi_phdr[i].p_type != PT_LOAD) continue;
    if (loader_low == 0 || begin < loader_low) loader_low = begin;
    if (begin + library->dlpi_phdr[i].p_memsz > loader_high) loader_high = begin + library->dlpi_phdr[i].p_memsz;
  }
  return 1;
}
__attribute__((constructor)) static void begin(void) { dl_iterate_phdr(find_loader, NULL); }

// The dynamic loader aborts the process where it has no memory for a thread's data: nobody can do anything about it.
static int is_loader(const void* caller) { return (uintptr_t)caller >= loader_low && (uintptr_t)caller < loader_high; }

static int fails(int* left, const void* caller) {
  if (__atomic_load_n(left, __ATOMIC_RELAXED) < 0) return 0;
  if (is_loader(caller) || __atomic_fetch_sub(left, 1, __ATOMIC_RELAXED) != 0) return 0;
  if (shortage_lasts) __atomic_store_n(left, 0, __ATOMIC_RELAXED);
  __atomic_fetch_add(&shortage_failed, 1, __ATOMIC_RELAXED);
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t bytes) {
  return fails(&shortage_left_memory, __builtin_return_address(0)) ? NULL : __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  return fails(&shortage_left_memory, __builtin_return_address(0)) ? NULL : __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
  return fails(&shortage_left_memory, __builtin_return_address(0)) ? NULL : __libc_realloc(old, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  return fails(&shortage_left_memory, __builtin_return_address(0)) ? NULL : __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** found, size_t alignment, size_t bytes) {
  void* memory = memalign(alignment, bytes);
  if (memory == NULL) return ENOMEM;
  *found = memory;
  return 0;
}

void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  if (fails(&shortage_left_pages, NULL)) return MAP_FAILED;
  return (void*)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*body)(void*), void* context) {
  static int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  if (fails(&shortage_left_threads, NULL)) return EAGAIN;
  if (real == NULL)
    real = (int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*))dlsym(RTLD_NEXT, "pthread_create");
  return real(thread, how, body, context);
}
