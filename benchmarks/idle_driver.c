// A libcuda.so.1 that returns at once, compiled by idle_driver.py: what is left of a call's time is kvit's own.
//
// It shows one GPU. Memory is the host's, so copies work; kernels and graphs do nothing but be counted. The environment
// says what driver it is:
//   IDLE_DRIVER_CUDA   its version, 13000 if absent: it has no function, and takes no image, that is newer
//   IDLE_DRIVER_CC     compute capability of the GPU, 90 if absent
//   IDLE_DRIVER_GBPS   10^9 bytes per second of its memory, by clock and bus; 0, which says nothing, if absent
//   IDLE_DRIVER_FAILS  a function that fails;  IDLE_DRIVER_LACKS  one that it does not have
//   IDLE_DRIVER_LOG    a file, to which it adds what it is asked for and what it is handed
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_IMAGE = 200, UNSUPPORTED_PTX_VERSION = 222, NOT_FOUND = 500, UNKNOWN = 999 };
enum {
  NUM_SMS = 16,
  MEMORY_KHZ = 36,
  MEMORY_BITS = 37,
  L2_BYTES = 38,
  CC_MAJOR = 75,
  CC_MINOR = 76,
  SHARED_BYTES = 97
};

static int handle;  // every handle points here: nobody looks behind one
static _Thread_local void* current = NULL;
static _Thread_local int capturing = 0;

__attribute__((visibility("default"))) int idle_launches = 0, idle_graph_launches = 0, idle_allocations = 0;
__attribute__((visibility("default"))) int idle_graphs = 0;    // and executables, made and not destroyed
__attribute__((visibility("default"))) int idle_settings = 0;  // of the parameters of executables

// CUDA_KERNEL_NODE_PARAMS of cuda.h.
typedef struct KernelNode {
  void* function;
  unsigned int grid[3], block[3], shared_bytes;
  void **arguments, **extra;
  void *kernel, *context;
} KernelNode;

// What the executable of a graph of one kernel was given last, and the first bytes of its argument.
__attribute__((visibility("default"))) KernelNode idle_node;
__attribute__((visibility("default"))) unsigned char idle_argument[16];

// CUlaunchAttribute and CUlaunchConfig of cuda.h; of the attributes, what kvit sets.
enum { CLUSTER_DIMENSION = 4, PROGRAMMATIC_STREAM_SERIALIZATION = 6 };

typedef union AttributeValue {
  char pad[64];
  unsigned int cluster[3];
  int overlap;
} AttributeValue;

typedef struct Attribute {
  int id;
  char pad[4];
  AttributeValue value;
} Attribute;

typedef struct LaunchConfig {
  unsigned int grid[3], block[3], shared_bytes;
  void* stream;
  Attribute* attributes;
  unsigned int num_attributes;
} LaunchConfig;

// How the last kernel was launched, and in what clusters the last kernel node is. No attribute: 0.
__attribute__((visibility("default"))) unsigned int idle_grid[3], idle_cluster[3], idle_node_cluster[3];
__attribute__((visibility("default"))) int idle_overlap = 0;

// What L2 fetches at once by the last tensor map: CUtensorMapL2promotion of cuda.h.
__attribute__((visibility("default"))) int idle_promotion = -1;

static int nothing(void) { return SUCCESS; }

static int failure(void) { return UNKNOWN; }

static int setting(const char* name, int absent) {
  const char* text = getenv(name);
  return text == NULL ? absent : atoi(text);
}

static int is_named(const char* name, const char* setting) {
  const char* text = getenv(setting);
  return text != NULL && strcmp(text, name) == 0;
}

static void tell(const char* words, const char* name, int number, int status) {
  const char* path = getenv("IDLE_DRIVER_LOG");
  FILE* file = path == NULL ? NULL : fopen(path, "a");
  if (file == NULL) return;
  fprintf(file, "%s %s %d %d\n", words, name, number, status);
  fclose(file);
}

static int driver_version(int* version) {
  *version = setting("IDLE_DRIVER_CUDA", 13000);
  return SUCCESS;
}

static int one(int* count) {
  *count = 1;
  return SUCCESS;
}

static int zero(int* value) {
  *value = 0;
  return SUCCESS;
}

static int device_name(char* name, int capacity) {
  strncpy(name, "idle driver", (size_t)capacity);
  return SUCCESS;
}

static int device_attribute(int* value, int attribute) {
  const int capability = setting("IDLE_DRIVER_CC", 90);
  *value = attribute == NUM_SMS        ? 132
           : attribute == CC_MAJOR     ? capability / 10
           : attribute == CC_MINOR     ? capability % 10
           : attribute == SHARED_BYTES ? (capability >= 120 ? 99 : 227) * 1024
           : attribute == L2_BYTES     ? 50 << 20
           : attribute == MEMORY_KHZ   ? setting("IDLE_DRIVER_GBPS", 0) * 1000
           : attribute == MEMORY_BITS  ? 4000
                                       : 0;
  return SUCCESS;
}

static int device_memory(size_t* num_bytes) {
  *num_bytes = (size_t)80 << 30;
  return SUCCESS;
}

static int make_handle(void** made) {
  *made = &handle;
  return SUCCESS;
}

static int context_current(void** context) {
  *context = current;
  return SUCCESS;
}

static int context_set(void* context) {
  current = context;
  return SUCCESS;
}

static int context_id(void* context, unsigned long long* id) {
  *id = (uintptr_t)context;
  return SUCCESS;
}

static int context_pop(void** context) {
  *context = current;
  current = NULL;
  return SUCCESS;
}

// The newest ISA of PTX that a driver compiles, times ten: 8.0 with CUDA 12.0, 8.7 with 12.8, 9.0 with 13.0.
static int newest_isa(int cuda) {
  const int minor = cuda % 1000 / 10;
  return cuda >= 13000 ? 90 + minor : 80 + (minor > 5 ? minor - 1 : minor);
}

// Cubins are taken by version of their ELF ABI, PTX by its ISA, and nothing else, such as what is packed.
static int library_load(void** library, const char* image) {
  int cuda, status, major, minor;
  driver_version(&cuda);
  if (memcmp(image, "\177ELF", 4) == 0) {
    status = image[8] <= (cuda >= 13000 ? 8 : 7) ? SUCCESS : INVALID_IMAGE;
    tell("load", "cubin", image[8], status);
  } else if (sscanf(image, ".version %d.%d", &major, &minor) == 2) {
    status = 10 * major + minor <= newest_isa(cuda) ? SUCCESS : UNSUPPORTED_PTX_VERSION;
    tell("load", "ptx", 10 * major + minor, status);
  } else {
    status = INVALID_IMAGE;
    tell("load", "nothing", 0, status);
  }
  *library = &handle;
  return status;
}

static int library_kernel(void** kernel, void* library, const char* symbol) {
  (void)library, (void)symbol;
  return make_handle(kernel);
}

static int mem_alloc(void** data, size_t num_bytes) {
  ++idle_allocations;
  return posix_memalign(data, 256, num_bytes);
}

static int launch(void* kernel, unsigned int x, unsigned int y, unsigned int z) {
  (void)kernel;
  const unsigned int grid[3] = {x, y, z};
  memcpy(idle_grid, grid, sizeof idle_grid);
  memset(idle_cluster, 0, sizeof idle_cluster);
  idle_overlap = 0;
  ++idle_launches;
  return SUCCESS;
}

static int launch_with_attributes(const LaunchConfig* config, void* kernel) {
  launch(kernel, config->grid[0], config->grid[1], config->grid[2]);
  for (unsigned int i = 0; i < config->num_attributes; ++i) {
    const Attribute* attribute = &config->attributes[i];
    if (attribute->id == CLUSTER_DIMENSION) memcpy(idle_cluster, attribute->value.cluster, sizeof idle_cluster);
    if (attribute->id == PROGRAMMATIC_STREAM_SERIALIZATION) idle_overlap = attribute->value.overlap;
  }
  return SUCCESS;
}

static int set_node_attribute(void* node, int id, const AttributeValue* value) {
  (void)node;
  if (id == CLUSTER_DIMENSION) memcpy(idle_node_cluster, value->cluster, sizeof idle_node_cluster);
  return SUCCESS;
}

static int make_graph(void** made) {
  ++idle_graphs;
  return make_handle(made);
}

static int destroy_graph(void) {
  --idle_graphs;
  return SUCCESS;
}

static int set_kernel_node(void* executable, void* node, const KernelNode* wanted) {
  (void)executable, (void)node;
  ++idle_settings;
  idle_node = *wanted;
  memcpy(idle_argument, wanted->arguments[0], sizeof idle_argument);
  return SUCCESS;
}

static int graph_launch(void) {
  ++idle_graph_launches;
  return SUCCESS;
}

static int mem_free(void* data) {
  free(data);
  return SUCCESS;
}

static int copy(void* target, const void* source, size_t num_bytes) {
  memmove(target, source, num_bytes);
  return SUCCESS;
}

static int fill(void* data, unsigned char value, size_t num_bytes) {
  memset(data, value, num_bytes);
  return SUCCESS;
}

// Of the last event: the stream that it was recorded in, and the stream that was made to wait for it.
__attribute__((visibility("default"))) void *idle_recorded = NULL, *idle_waiter = NULL;
__attribute__((visibility("default"))) int idle_waits = 0;

static int record(void* event, void* stream) {
  (void)event;
  idle_recorded = stream;
  return SUCCESS;
}

static int wait_event(void* stream) {
  idle_waiter = stream;
  ++idle_waits;
  return SUCCESS;
}

static int capture_begin(void) {
  capturing = 1;
  return SUCCESS;
}

static int capture_end(void* stream, void** graph) {
  (void)stream;
  capturing = 0;
  return make_graph(graph);
}

static int is_capturing(void* stream, int* status) {
  (void)stream;
  *status = capturing;
  return SUCCESS;
}

static int encode_map(void* map, int type, int rank, void* base, const void* sizes, const void* steps, const void* box,
                      const void* ones, int interleave, int swizzle, int promotion) {
  (void)map, (void)type, (void)rank, (void)base, (void)sizes, (void)steps, (void)box, (void)ones;
  (void)interleave, (void)swizzle;
  idle_promotion = promotion;
  return SUCCESS;
}

static int elapsed_ms(float* elapsed) {
  *elapsed = 0.0f;
  return SUCCESS;
}

static int error_name(int status, const char** name) {
  (void)status;
  *name = "CUDA_ERROR_OF_THE_IDLE_DRIVER";
  return SUCCESS;
}

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, void* query);

static const struct {
  const char* name;
  void* function;
} functions[] = {
    {"cuCtxGetCurrent", context_current},
    {"cuCtxGetDevice", zero},
    {"cuCtxGetId", context_id},
    {"cuCtxPopCurrent", context_pop},
    {"cuCtxPushCurrent", context_set},
    {"cuCtxSetCurrent", context_set},
    {"cuDeviceGet", zero},
    {"cuDeviceGetAttribute", device_attribute},
    {"cuDeviceGetCount", one},
    {"cuDeviceGetName", device_name},
    {"cuDevicePrimaryCtxRetain", make_handle},
    {"cuDeviceTotalMem", device_memory},
    {"cuDriverGetVersion", driver_version},
    {"cuEventCreate", make_handle},
    {"cuEventElapsedTime", elapsed_ms},
    {"cuEventRecord", record},
    {"cuGetErrorName", error_name},
    {"cuGetProcAddress", cuGetProcAddress_v2},
    {"cuGraphAddKernelNode", make_handle},
    {"cuGraphCreate", make_graph},
    {"cuGraphDestroy", destroy_graph},
    {"cuGraphExecDestroy", destroy_graph},
    {"cuGraphInstantiateWithFlags", make_graph},  // cuGraphInstantiate, as cuda.h has it
    {"cuGraphExecKernelNodeSetParams", set_kernel_node},
    {"cuGraphKernelNodeSetAttribute", set_node_attribute},
    {"cuGraphLaunch", graph_launch},
    {"cuLaunchKernel", launch},
    {"cuLaunchKernelEx", launch_with_attributes},
    {"cuLibraryGetKernel", library_kernel},
    {"cuLibraryLoadData", library_load},
    {"cuMemAllocAsync", mem_alloc},
    {"cuMemFreeAsync", mem_free},
    {"cuMemcpyAsync", copy},
    {"cuMemcpyDtoHAsync", copy},
    {"cuMemcpyHtoDAsync", copy},
    {"cuMemsetD8Async", fill},
    {"cuStreamBeginCapture", capture_begin},
    {"cuStreamCreate", make_handle},
    {"cuStreamEndCapture", capture_end},
    {"cuStreamIsCapturing", is_capturing},
    {"cuStreamWaitEvent", wait_event},
    {"cuTensorMapEncodeTiled", encode_map},
};

// How every caller finds the rest: a function as it was in some version. What is not in the table does nothing.
int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, void* query) {
  (void)flags;
  int cuda;
  driver_version(&cuda);
  *function = nothing;
  for (size_t i = 0; i < sizeof functions / sizeof functions[0]; ++i) {
    if (strcmp(functions[i].name, name) == 0) *function = functions[i].function;
  }
  if (is_named(name, "IDLE_DRIVER_FAILS")) *function = failure;
  if (version > cuda || is_named(name, "IDLE_DRIVER_LACKS")) *function = NULL;
  const int status = *function == NULL ? NOT_FOUND : SUCCESS;
  if (query != NULL) *(int*)query = *function == NULL;  // CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND
  tell("ask", name, version, status);
  return status;
}
