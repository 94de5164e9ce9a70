// A host that owns its memory and its threads, and decodes with kvit through the table of kvit.h, without the GIL.
//
//   decode(...)         K and V, page table and lengths in memory from malloc; OS threads share the sequences out
//   decode_on_gpu(...)  the same on device pointers that the caller has
//
// One step writes one new token of every sequence into its page, then attends it to all tokens so far.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <kvit.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define ELEMENT_BYTES 2  // of a bfloat16
#define POOL_ALIGNMENT 64
#define MAX_THREADS 64

static const kvit_api* kvit;  // set when this module is imported

typedef struct Shape {
  long long steps, sequences, query_heads, kv_heads, head_dim, page_size;
} Shape;

// Everything lies on one device. The pages of sequence s are s * slots, s * slots + 1, ...
typedef struct Engine {
  Shape shape;
  int64_t slots;  // pages of a sequence
  int32_t device_type, device_id;
  char *q, *out;          // [steps, sequences, query_heads, head_dim]
  char *k, *v;            // [steps, sequences, kv_heads, head_dim]
  char *k_pool, *v_pool;  // [sequences * slots, page_size, kv_heads, head_dim]
  char* pages;            // int32 [sequences, slots]
  char* lengths;          // int32 [steps, sequences]: of each sequence in each step
  kvit_view* view;
} Engine;

// A thread and its share of the sequences. Operations belong to one thread: their workspace serves one call at a time.
typedef struct Worker {
  const Engine* engine;
  int64_t first, count;
  kvit_op *append, *attention;
  pthread_t thread;
  int32_t status;
  char error[512];
} Worker;

static kvit_tensor Dense(const Engine* engine, int32_t dtype, char* data, int32_t ndim, const int64_t* shape) {
  return kvit_dense(data, dtype, engine->device_type, engine->device_id, ndim, shape);
}

// Keeps the words of a failure: last_error belongs to the thread that failed.
static int Succeeded(Worker* worker, int32_t status) {
  if (status == KVIT_OK) return 1;
  worker->status = status;
  strncpy(worker->error, kvit->last_error(), sizeof(worker->error) - 1);
  return 0;
}

static int Step(Worker* worker, int64_t step) {
  const Engine* engine = worker->engine;
  const Shape* shape = &engine->shape;
  const int64_t row = step * shape->sequences + worker->first;  // the share's first, of all tokens
  const int64_t query_bytes = shape->query_heads * shape->head_dim * ELEMENT_BYTES;
  const int64_t kv_bytes = shape->kv_heads * shape->head_dim * ELEMENT_BYTES;
  const int64_t query_shape[] = {worker->count, shape->query_heads, shape->head_dim};
  const int64_t kv_shape[] = {worker->count, shape->kv_heads, shape->head_dim};
  const int64_t table_shape[] = {worker->count, engine->slots};
  const kvit_tensor q = Dense(engine, KVIT_DTYPE_BF16, engine->q + row * query_bytes, 3, query_shape);
  const kvit_tensor out = Dense(engine, KVIT_DTYPE_BF16, engine->out + row * query_bytes, 3, query_shape);
  const kvit_tensor k = Dense(engine, KVIT_DTYPE_BF16, engine->k + row * kv_bytes, 3, kv_shape);
  const kvit_tensor v = Dense(engine, KVIT_DTYPE_BF16, engine->v + row * kv_bytes, 3, kv_shape);
  const kvit_tensor pages =
      Dense(engine, KVIT_DTYPE_I32, engine->pages + worker->first * engine->slots * 4, 2, table_shape);
  const kvit_tensor lengths = Dense(engine, KVIT_DTYPE_I32, engine->lengths + row * 4, 1, table_shape);
  const kvit_page_table table = {&pages, NULL, &lengths};
  return Succeeded(worker, kvit->append(worker->append, engine->view, &table, &k, &v, NULL, NULL)) &&
         Succeeded(worker, kvit->attention(worker->attention, engine->view, &table, &q, &out, NULL, NULL, NULL));
}

static void* Decode(void* argument) {
  Worker* worker = argument;
  for (int64_t step = 0; step < worker->engine->shape.steps && Step(worker, step); ++step) continue;
  return NULL;
}

static int MakeOps(Worker* worker) {
  kvit_op_options append = {0}, attention = {0};
  append.size = attention.size = sizeof(kvit_op_options);
  append.view = attention.view = worker->engine->view;
  append.kind = KVIT_OP_APPEND;
  attention.kind = KVIT_OP_ATTENTION;
  attention.query_heads = (int32_t)worker->engine->shape.query_heads;
  return Succeeded(worker, kvit->op_create(&append, &worker->append)) &&
         Succeeded(worker, kvit->op_create(&attention, &worker->attention));
}

// Waits for the work, and asks whether the kernels met a wrong page or length.
static void Finish(Worker* worker) {
  if (worker->status == KVIT_OK && Succeeded(worker, kvit->op_check(worker->append, NULL, NULL))) {
    Succeeded(worker, kvit->op_check(worker->attention, NULL, NULL));
  }
}

static void DestroyOps(Worker* worker) {
  if (worker->append != NULL) kvit->op_destroy(worker->append);
  if (worker->attention != NULL) kvit->op_destroy(worker->attention);
}

// Runs the threads to their end. With keep_gil the calling thread keeps it, which shows that no call of theirs needs
// it.
static int Run(Worker* workers, int threads, int keep_gil) {
  PyThreadState* state = keep_gil ? NULL : PyEval_SaveThread();
  int started = 0;
  while (started < threads && pthread_create(&workers[started].thread, NULL, Decode, &workers[started]) == 0) ++started;
  for (int i = 0; i < started; ++i) pthread_join(workers[i].thread, NULL);
  if (state != NULL) PyEval_RestoreThread(state);
  return started == threads;
}

static kvit_view* MakeView(const Engine* engine) {
  const Shape* shape = &engine->shape;
  const int64_t pool_shape[] = {shape->sequences * engine->slots, shape->page_size, shape->kv_heads, shape->head_dim};
  const kvit_tensor k = Dense(engine, KVIT_DTYPE_BF16, engine->k_pool, 4, pool_shape);
  const kvit_tensor v = Dense(engine, KVIT_DTYPE_BF16, engine->v_pool, 4, pool_shape);
  kvit_view_options options = {0};
  kvit_view* view = NULL;
  options.size = sizeof(options);
  options.k = &k;
  options.v = &v;
  return kvit->view_create(&options, &view) == KVIT_OK ? view : NULL;
}

// Decodes all steps; returns -1 with a Python exception set where that fails.
static int DecodeAll(Engine* engine, int threads, int keep_gil) {
  Worker workers[MAX_THREADS];
  const char* error = NULL;
  const int64_t sequences = engine->shape.sequences;
  memset(workers, 0, sizeof(workers));
  engine->view = MakeView(engine);
  if (engine->view == NULL) {
    PyErr_SetString(PyExc_RuntimeError, kvit->last_error());
    return -1;
  }
  for (int i = 0; i < threads && error == NULL; ++i) {
    workers[i].engine = engine;
    workers[i].first = sequences * i / threads;
    workers[i].count = sequences * (i + 1) / threads - workers[i].first;
    if (!MakeOps(&workers[i])) error = workers[i].error;
  }
  if (error == NULL && !Run(workers, threads, keep_gil)) error = "the system has no more threads";
  for (int i = 0; i < threads; ++i) {
    if (error == NULL) Finish(&workers[i]);
    if (error == NULL && workers[i].status != KVIT_OK) error = workers[i].error;
    DestroyOps(&workers[i]);
  }
  kvit->view_destroy(engine->view);
  if (error == NULL) return 0;
  PyErr_SetString(PyExc_RuntimeError, error);
  return -1;
}

static int64_t SlotsOf(const Shape* shape) { return (shape->steps + shape->page_size - 1) / shape->page_size; }

static int CheckShape(const Shape* shape) {
  const long long least = shape->steps < 1 || shape->sequences < 1 || shape->query_heads < 1 || shape->kv_heads < 1 ||
                          shape->head_dim < 1 || shape->page_size < 1;
  if (least) PyErr_SetString(PyExc_ValueError, "every number of the shape must be at least 1");
  return least ? -1 : 0;
}

// Memory of the host: what a GPU engine would have allocated on the device when it started.
static int Allocate(Engine* engine) {
  const Shape* shape = &engine->shape;
  const size_t row = (size_t)(shape->kv_heads * shape->head_dim * ELEMENT_BYTES);
  const size_t pool = ((size_t)(shape->sequences * engine->slots * shape->page_size) * row + POOL_ALIGNMENT - 1) /
                      POOL_ALIGNMENT * POOL_ALIGNMENT;
  int32_t* pages = malloc((size_t)(shape->sequences * engine->slots) * sizeof(int32_t));
  int32_t* lengths = malloc((size_t)(shape->steps * shape->sequences) * sizeof(int32_t));
  engine->k_pool = aligned_alloc(POOL_ALIGNMENT, pool);
  engine->v_pool = aligned_alloc(POOL_ALIGNMENT, pool);
  engine->pages = (char*)pages;
  engine->lengths = (char*)lengths;
  if (engine->k_pool == NULL || engine->v_pool == NULL || pages == NULL || lengths == NULL) return -1;
  memset(engine->k_pool, 0xff, pool);  // NaN: nobody may read what was not appended
  memset(engine->v_pool, 0xff, pool);
  for (int64_t i = 0; i < shape->sequences * engine->slots; ++i) pages[i] = (int32_t)i;
  for (int64_t i = 0; i < shape->steps * shape->sequences; ++i) lengths[i] = (int32_t)(i / shape->sequences + 1);
  return 0;
}

static void Free(Engine* engine) {
  free(engine->k_pool);
  free(engine->v_pool);
  free(engine->pages);
  free(engine->lengths);
}

static int CheckBytes(const char* name, const Py_buffer* buffer, int64_t heads, const Shape* shape) {
  const int64_t bytes = shape->steps * shape->sequences * heads * shape->head_dim * ELEMENT_BYTES;
  if (buffer->len == bytes) return 0;
  PyErr_Format(PyExc_ValueError, "%s has %zd bytes; this shape has %lld", name, buffer->len, (long long)bytes);
  return -1;
}

static PyObject* decode(PyObject* module, PyObject* args, PyObject* keywords) {
  static char* names[] = {"q", "k", "v", "out", "shape", "page_size", "threads", "keep_gil", NULL};
  Py_buffer q, k, v, out;
  Engine engine = {0};
  Shape* shape = &engine.shape;
  int threads = 1, keep_gil = 0, failed;
  (void)module;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*y*y*w*(LLLLL)L|ip:decode", names, &q, &k, &v, &out, &shape->steps,
                                   &shape->sequences, &shape->query_heads, &shape->kv_heads, &shape->head_dim,
                                   &shape->page_size, &threads, &keep_gil)) {
    return NULL;
  }
  failed = CheckShape(shape) || CheckBytes("q", &q, shape->query_heads, shape) ||
           CheckBytes("k", &k, shape->kv_heads, shape) || CheckBytes("v", &v, shape->kv_heads, shape) ||
           CheckBytes("out", &out, shape->query_heads, shape);
  if (!failed && (threads < 1 || threads > MAX_THREADS)) {
    PyErr_Format(PyExc_ValueError, "threads is %d; give 1 to %d", threads, MAX_THREADS);
    failed = 1;
  }
  if (!failed) {
    engine.device_type = KVIT_DEVICE_HOST;
    engine.slots = SlotsOf(shape);
    engine.q = q.buf;
    engine.k = k.buf;
    engine.v = v.buf;
    engine.out = out.buf;
    if (Allocate(&engine) != 0) {
      PyErr_NoMemory();
      failed = 1;
    } else {
      failed = DecodeAll(&engine, threads, keep_gil);
    }
    Free(&engine);
  }
  PyBuffer_Release(&q);
  PyBuffer_Release(&k);
  PyBuffer_Release(&v);
  PyBuffer_Release(&out);
  if (failed) return NULL;
  Py_RETURN_NONE;
}

static PyObject* decode_on_gpu(PyObject* module, PyObject* args, PyObject* keywords) {
  static char* names[] = {"q",     "k",       "v",     "out",       "k_pool", "v_pool",
                          "pages", "lengths", "shape", "page_size", "device", NULL};
  unsigned long long q, k, v, out, k_pool, v_pool, pages, lengths;
  Engine engine = {0};
  Shape* shape = &engine.shape;
  int device = 0;
  (void)module;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "KKKKKKKK(LLLLL)L|i:decode_on_gpu", names, &q, &k, &v, &out, &k_pool,
                                   &v_pool, &pages, &lengths, &shape->steps, &shape->sequences, &shape->query_heads,
                                   &shape->kv_heads, &shape->head_dim, &shape->page_size, &device) ||
      CheckShape(shape) != 0) {
    return NULL;
  }
  engine.device_type = KVIT_DEVICE_CUDA;
  engine.device_id = device;
  engine.slots = SlotsOf(shape);
  engine.q = (char*)(uintptr_t)q;
  engine.k = (char*)(uintptr_t)k;
  engine.v = (char*)(uintptr_t)v;
  engine.out = (char*)(uintptr_t)out;
  engine.k_pool = (char*)(uintptr_t)k_pool;
  engine.v_pool = (char*)(uintptr_t)v_pool;
  engine.pages = (char*)(uintptr_t)pages;
  engine.lengths = (char*)(uintptr_t)lengths;
  if (DecodeAll(&engine, 1, 0) != 0) return NULL;
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"decode", (PyCFunction)(void (*)(void))decode, METH_VARARGS | METH_KEYWORDS,
     "decode(q, k, v, out, shape, page_size, threads=1, keep_gil=False)\n\n"
     "Decode on the host. q, out: bfloat16 [steps, sequences, query_heads, head_dim]; k, v the same with kv_heads;\n"
     "shape: (steps, sequences, query_heads, kv_heads, head_dim)."},
    {"decode_on_gpu", (PyCFunction)(void (*)(void))decode_on_gpu, METH_VARARGS | METH_KEYWORDS,
     "decode_on_gpu(q, k, v, out, k_pool, v_pool, pages, lengths, shape, page_size, device=0)\n\n"
     "The same on device pointers. pools: bfloat16 [sequences * slots, page_size, kv_heads, head_dim]; pages: int32\n"
     "[sequences, slots]; lengths: int32 [steps, sequences]."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "c_host", "Decodes with kvit from C.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_c_host(void) {
  kvit = kvit_import();
  return kvit == NULL ? NULL : PyModule_Create(&module);
}
