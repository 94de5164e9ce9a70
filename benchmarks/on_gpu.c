// Stands in for a library's array on a GPU where there is none: on_gpu.OnGpu(array) lends what the array's own type lends
// by DLPack's C exchange API, and says that it lies on GPU 0. So a call pays what it pays for the library's arrays.
#include <Python.h>
#include <stdint.h>

enum { CUDA = 2 };

// DLManagedTensorVersioned of DLPack 1, as far as its device.
typedef struct Managed {
  uint32_t major, minor;
  void *context, *deleter;
  uint64_t flags;
  void* data;
  int32_t device_type, device_id;
} Managed;

// DLPackExchangeAPI.
typedef struct Api {
  uint32_t major, minor;
  void *previous, *allocator;
  int (*lend)(void* source, Managed** out);
  void *adopt, *borrow;
  int (*work_stream)(int32_t device_type, int32_t device_id, void** out);
} Api;

typedef struct OnGpu {
  PyObject_HEAD
  PyObject* array;
  const Api* api;
} OnGpu;

static void* current_stream = NULL;  // of the library: what set_stream was given last

static int lend(void* source, Managed** out) {
  const int status = ((OnGpu*)source)->api->lend(((OnGpu*)source)->array, out);
  if (status == 0) {
    (*out)->device_type = CUDA;
    (*out)->device_id = 0;
  }
  return status;
}

static int work_stream(int32_t device_type, int32_t device_id, void** out) {
  (void)device_type, (void)device_id;
  *out = current_stream;
  return 0;
}

static Api api = {1, 3, NULL, NULL, lend, NULL, NULL, work_stream};

static PyObject* on_gpu_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  PyObject* array;
  (void)keywords;
  if (!PyArg_ParseTuple(arguments, "O", &array)) return NULL;
  PyObject* capsule = PyObject_GetAttrString((PyObject*)Py_TYPE(array), "__dlpack_c_exchange_api__");
  if (capsule == NULL) return NULL;
  const Api* theirs = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  Py_DECREF(capsule);  // the functions stay for as long as the process
  OnGpu* self = theirs == NULL ? NULL : (OnGpu*)type->tp_alloc(type, 0);
  if (self == NULL) return NULL;
  self->array = Py_NewRef(array);
  self->api = theirs;
  return (PyObject*)self;
}

static void on_gpu_dealloc(PyObject* self) {
  Py_DECREF(((OnGpu*)self)->array);
  Py_TYPE(self)->tp_free(self);
}

static PyTypeObject on_gpu_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "on_gpu.OnGpu",
    .tp_basicsize = sizeof(OnGpu),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = on_gpu_new,
    .tp_dealloc = on_gpu_dealloc,
};

static PyObject* set_stream(PyObject* module, PyObject* handle) {
  (void)module;
  current_stream = PyLong_AsVoidPtr(handle);
  return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {{"set_stream", set_stream, METH_O, "The stream that the library works on."},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "on_gpu", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_on_gpu(void) {
  PyObject* capsule = PyCapsule_New(&api, "dlpack_exchange_api", NULL);
  on_gpu_type.tp_dict = PyDict_New();
  if (capsule == NULL || on_gpu_type.tp_dict == NULL) return NULL;
  if (PyDict_SetItemString(on_gpu_type.tp_dict, "__dlpack_c_exchange_api__", capsule) < 0) return NULL;
  Py_DECREF(capsule);
  PyObject* module = PyType_Ready(&on_gpu_type) < 0 ? NULL : PyModule_Create(&definition);
  if (module != NULL && PyModule_AddObjectRef(module, "OnGpu", (PyObject*)&on_gpu_type) < 0) Py_CLEAR(module);
  return module;
}
