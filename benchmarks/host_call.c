// Times attention calls through the table of kvit.h, for host_calls.py: what a call costs a host that is written in C.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <kvit.h>
#include <time.h>

static const kvit_api* kvit;  // set when this module is imported

typedef struct Memory {
  unsigned long long k, v, pages, lengths, q, out, lse, stream;
} Memory;

static double Microseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

static PyObject* Fail(void) {
  PyErr_SetString(PyExc_RuntimeError, kvit->last_error());
  return NULL;
}

// A view [pages, page_size, kv_heads, head_dim] and an attention operation on it.
static int Create(const kvit_tensor* k, const kvit_tensor* v, int query_heads, int32_t launch, kvit_view** view,
                  kvit_op** op) {
  kvit_view_options of_view = {.size = sizeof of_view, .layout = KVIT_LAYOUT_NHD, .k = k, .v = v};
  if (kvit->view_create(&of_view, view) != KVIT_OK) return 0;
  kvit_op_options of_op = {.size = sizeof of_op, .view = *view, .query_heads = query_heads, .launch = launch};
  of_op.kind = KVIT_OP_ATTENTION;
  if (kvit->op_create(&of_op, op) == KVIT_OK) return 1;
  kvit->view_destroy(*view);
  return 0;
}

// call_us(device, (k, v, pages, lengths, q, out, lse, stream), (pages, page_size, kv_heads, head_dim), (sequences,
// query_heads, slots), whether to launch by a graph, calls) -> microseconds of one call, on average
static PyObject* CallUs(PyObject* module, PyObject* arguments) {
  Memory at;
  long long pool[4], sequences, query_heads, slots;
  int device, by_graph, calls;
  kvit_view* view;
  kvit_op* op;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "i(KKKKKKKK)(LLLL)(LLL)pi", &device, &at.k, &at.v, &at.pages, &at.lengths, &at.q,
                        &at.out, &at.lse, &at.stream, &pool[0], &pool[1], &pool[2], &pool[3], &sequences, &query_heads,
                        &slots, &by_graph, &calls)) {
    return NULL;
  }
  const int64_t pool_shape[] = {pool[0], pool[1], pool[2], pool[3]};
  const int64_t rows_shape[] = {sequences, query_heads, pool[3]}, table_shape[] = {sequences, slots};
  const int32_t bf16 = KVIT_DTYPE_BF16, i32 = KVIT_DTYPE_I32, cuda = KVIT_DEVICE_CUDA;
  const kvit_tensor k = kvit_dense((void*)at.k, bf16, cuda, device, 4, pool_shape);
  const kvit_tensor v = kvit_dense((void*)at.v, bf16, cuda, device, 4, pool_shape);
  const kvit_tensor pages = kvit_dense((void*)at.pages, i32, cuda, device, 2, table_shape);
  const kvit_tensor lengths = kvit_dense((void*)at.lengths, i32, cuda, device, 1, table_shape);
  const kvit_tensor q = kvit_dense((void*)at.q, bf16, cuda, device, 3, rows_shape);
  const kvit_tensor out = kvit_dense((void*)at.out, bf16, cuda, device, 3, rows_shape);
  const kvit_tensor lse = kvit_dense((void*)at.lse, KVIT_DTYPE_F32, cuda, device, 2, rows_shape);
  const kvit_page_table table = {&pages, NULL, &lengths};
  const int32_t launch = by_graph ? KVIT_LAUNCH_GRAPH : KVIT_LAUNCH_DIRECT;
  if (!Create(&k, &v, (int)query_heads, launch, &view, &op)) return Fail();
  int32_t status = kvit->attention(op, view, &table, &q, &out, &lse, NULL, (kvit_stream)at.stream);  // the first
  if (status == KVIT_OK) status = kvit->op_check(op, (kvit_stream)at.stream, NULL);                  // and its end
  const double start = Microseconds();
  for (int i = 0; i < calls && status == KVIT_OK; ++i) {
    status = kvit->attention(op, view, &table, &q, &out, &lse, NULL, (kvit_stream)at.stream);
  }
  const double us = (Microseconds() - start) / calls;
  if (status == KVIT_OK) status = kvit->op_check(op, (kvit_stream)at.stream, NULL);
  PyObject* result = status == KVIT_OK ? PyFloat_FromDouble(us) : Fail();
  kvit->op_destroy(op);
  kvit->view_destroy(view);
  return result;
}

static PyMethodDef methods[] = {{"call_us", CallUs, METH_VARARGS, "Microseconds of one attention call."},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "host_call", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_host_call(void) {
  kvit = kvit_import();
  return kvit == NULL ? NULL : PyModule_Create(&definition);
}
