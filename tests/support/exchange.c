// A library of arrays for tests whose types have DLPack's C exchange API: what it lends, and how it fails, is asked
// for.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

enum { MOST_AXES = 16 };

typedef struct Version {
  uint32_t major, minor;
} Version;

typedef struct Tensor {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;

typedef struct Managed {
  Version version;
  void* context;
  void (*deleter)(struct Managed* self);
  uint64_t flags;
  Tensor tensor;
} Managed;

typedef struct Api {
  Version version;
  struct Api* previous;
  void* allocator;
  int (*lend)(void* source, Managed** out);
  void *adopt, *borrow;
  int (*work_stream)(int32_t device_type, int32_t device_id, void** out);
} Api;

// What an object lends. `context` is kept with what it lends; `before`, if not None, is called first.
typedef struct Lender {
  PyObject_HEAD PyObject *context, *before;
  unsigned long long address, byte_offset, flags;
  int device_type, device_id, ndim, major, status;
  int code, bits, lanes, has_strides, has_deleter, gives_nothing;
  int64_t shape[MOST_AXES], strides[MOST_AXES];
} Lender;

// One block of memory for each loan, shape and strides in it.
typedef struct Loan {
  Managed managed;
  int64_t shape[MOST_AXES], strides[MOST_AXES];
} Loan;

static long long alive = 0, lent = 0;  // loans that were not given back; all loans
static unsigned long long current_stream = 0;
static int stream_fails = 0;

static void give_back(Managed* managed) {
  --alive;
  Py_XDECREF(managed->context);
  memset(managed, 0xDD, sizeof(Loan));  // whoever looks at it again, or gives it back again, is found out
  PyMem_RawFree(managed);
}

static int lend(void* source, Managed** out) {
  Lender* lender = source;
  if (lender->before != Py_None) {
    PyObject* done = PyObject_CallNoArgs(lender->before);
    if (done == NULL) return -1;
    Py_DECREF(done);
  }
  if (lender->status != 0) return lender->status;
  if (lender->gives_nothing) {
    *out = NULL;
    return 0;
  }
  Loan* loan = PyMem_RawCalloc(1, sizeof(Loan));
  memcpy(loan->shape, lender->shape, sizeof loan->shape);
  memcpy(loan->strides, lender->strides, sizeof loan->strides);
  Managed* managed = &loan->managed;
  managed->version = (Version){(uint32_t)lender->major, 3};
  managed->context = Py_NewRef(lender->context);
  managed->deleter = lender->has_deleter ? give_back : NULL;
  managed->flags = lender->flags;
  managed->tensor = (Tensor){
      .data = (void*)(uintptr_t)lender->address,
      .device_type = lender->device_type,
      .device_id = lender->device_id,
      .ndim = lender->ndim,
      .code = (uint8_t)lender->code,
      .bits = (uint8_t)lender->bits,
      .lanes = (uint16_t)lender->lanes,
      .shape = lender->ndim ? loan->shape : NULL,
      .strides = lender->has_strides ? loan->strides : NULL,
      .byte_offset = lender->byte_offset,
  };
  ++alive;
  ++lent;
  *out = managed;
  return 0;
}

static int work_stream(int32_t device_type, int32_t device_id, void** out) {
  (void)device_type, (void)device_id;
  if (stream_fails) {
    PyErr_SetString(PyExc_RuntimeError, "no stream today");
    return -1;
  }
  *out = (void*)(uintptr_t)current_stream;
  return 0;
}

// Versions 1.3 alone, 2.0 alone, 2.0 before 1.3, and 1.3 without the function that lends.
static Api good = {{1, 3}, NULL, NULL, lend, NULL, NULL, work_stream};
static Api newer = {{2, 0}, NULL, NULL, NULL, NULL, NULL, NULL};
static Api chained = {{2, 0}, &good, NULL, NULL, NULL, NULL, NULL};
static Api partial = {{1, 3}, NULL, NULL, NULL, NULL, NULL, work_stream};

static int read_numbers(PyObject* given, int64_t* numbers) {
  const Py_ssize_t count = PySequence_Size(given);
  if (count < 0 || count > MOST_AXES) return -1;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* number = PySequence_GetItem(given, i);
    if (number == NULL) return -1;
    numbers[i] = PyLong_AsLongLong(number);
    Py_DECREF(number);
    if (PyErr_Occurred()) return -1;
  }
  return (int)count;
}

static PyObject* lender_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  static char* names[] = {"address", "shape",       "code",          "bits",  "strides", "lanes",
                          "device",  "byte_offset", "flags",         "major", "status",  "context",
                          "before",  "has_deleter", "gives_nothing", NULL};
  Lender* self = (Lender*)type->tp_alloc(type, 0);
  if (self == NULL) return NULL;
  PyObject *shape, *strides = Py_None, *context = Py_None, *before = Py_None;
  self->lanes = self->device_type = self->major = self->has_deleter = 1;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "KOii|Oi(ii)KKiiOOpp", names, &self->address, &shape,
                                   &self->code, &self->bits, &strides, &self->lanes, &self->device_type,
                                   &self->device_id, &self->byte_offset, &self->flags, &self->major, &self->status,
                                   &context, &before, &self->has_deleter, &self->gives_nothing)) {
    Py_DECREF(self);
    return NULL;
  }
  self->context = Py_NewRef(context);
  self->before = Py_NewRef(before);
  self->ndim = read_numbers(shape, self->shape);
  self->has_strides = strides != Py_None;
  if (self->ndim < 0 || (self->has_strides && read_numbers(strides, self->strides) < 0)) {
    Py_DECREF(self);
    return NULL;
  }
  return (PyObject*)self;
}

static void lender_dealloc(PyObject* self) {
  Py_XDECREF(((Lender*)self)->context);
  Py_XDECREF(((Lender*)self)->before);
  Py_TYPE(self)->tp_free(self);
}

static PyTypeObject lender_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "exchange.Lender",
    .tp_basicsize = sizeof(Lender),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = lender_new,
    .tp_dealloc = lender_dealloc,
    .tp_doc = "An array without an API of its own: subclasses say which.",
};

static PyObject* counts(PyObject* module, PyObject* nothing) {
  (void)module, (void)nothing;
  return Py_BuildValue("LL", alive, lent);
}

static PyObject* set_stream(PyObject* module, PyObject* arguments) {
  (void)module;
  stream_fails = 0;
  return PyArg_ParseTuple(arguments, "K|p", &current_stream, &stream_fails) ? Py_NewRef(Py_None) : NULL;
}

static PyObject* forget(PyObject* module, PyObject* nothing) {
  (void)module, (void)nothing;
  alive = 0;
  return Py_NewRef(Py_None);
}

static PyObject* drop(PyObject* module, PyObject* lender) {
  (void)module;
  Py_SETREF(((Lender*)lender)->context, Py_NewRef(Py_None));
  return Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"counts", counts, METH_NOARGS, "(loans that were not given back, all loans)"},
    {"drop", drop, METH_O, "Let go of what keeps a lender's memory: loans alone have it from then on."},
    {"forget", forget, METH_NOARGS, "Count from 0 again: what has no deleter is never given back."},
    {"set_stream", set_stream, METH_VARARGS, "The stream that the library works on, and whether asking for it fails."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "exchange", .m_size = -1,
                                        .m_methods = functions};

PyMODINIT_FUNC PyInit_exchange(void) {
  PyObject* module = PyModule_Create(&definition);
  if (module == NULL || PyType_Ready(&lender_type) < 0) return NULL;
  const struct {
    const char* name;
    PyObject* value;
  } members[] = {
      {"Lender", Py_NewRef((PyObject*)&lender_type)},
      {"GOOD", PyCapsule_New(&good, "dlpack_exchange_api", NULL)},
      {"NEWER", PyCapsule_New(&newer, "dlpack_exchange_api", NULL)},
      {"CHAINED", PyCapsule_New(&chained, "dlpack_exchange_api", NULL)},
      {"PARTIAL", PyCapsule_New(&partial, "dlpack_exchange_api", NULL)},
      {"MISNAMED", PyCapsule_New(&good, "something_else", NULL)},
  };
  for (size_t i = 0; i < sizeof members / sizeof members[0]; ++i) {
    if (PyModule_AddObjectRef(module, members[i].name, members[i].value) < 0) return NULL;
    Py_XDECREF(members[i].value);
  }
  return module;
}
