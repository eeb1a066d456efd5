// A CUDA runtime without a card: it launches nothing, and keeps a list of what was to be launched.
//
// Linked with the objects of the module in place of the real one, so that the C functions run as
// they are: checks, choice of the kernel, sizes, attributes. A launch that an H100 would refuse is
// refused here.
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <string>

namespace {

constexpr unsigned int kMaxThreads = 1024, kMaxCluster = 8;
constexpr size_t kShared = 48 * 1024, kMaxShared = 227 * 1024;

std::mutex mutex;
std::map<const void*, size_t> shared_limit;  // that cudaFuncSetAttribute has raised
std::string launches;

// Names of kernels by the address of their stub. Other files fill it before this one's variables
// are made.
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> names;
  return names;
}

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared;
  unsigned int cluster = 1;
  bool programmatic = false, cooperative = false;
};

cudaError_t add(const Launch& launch) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto name = names().find(launch.kernel);
  if (name == names().end()) return cudaErrorInvalidDeviceFunction;
  const unsigned int blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  const unsigned int threads = launch.block.x * launch.block.y * launch.block.z;
  const auto raised = shared_limit.find(launch.kernel);
  const size_t limit = raised == shared_limit.end() ? kShared : raised->second;
  if (blocks == 0 || threads == 0 || threads > kMaxThreads || launch.shared > limit ||
      launch.cluster > kMaxCluster || blocks % launch.cluster != 0) {
    return cudaErrorInvalidConfiguration;
  }
  for (size_t value : {size_t{blocks}, size_t{threads}, launch.shared, size_t{launch.cluster},
                       size_t{launch.programmatic}, size_t{launch.cooperative}}) {
    launches += std::to_string(value) + ' ';
  }
  launches += name->second + '\n';
  return cudaSuccess;
}

}  // namespace

extern "C" {

// The launches since the last call, a line each, valid until the next call.
__attribute__((visibility("default"))) const char* bdk_take_launches() {
  static std::string taken;
  const std::lock_guard<std::mutex> lock(mutex);
  taken = launches;
  launches.clear();
  return taken.c_str();
}

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  names()[stub] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

// A launch by <<<>>>: the configuration is pushed, and popped by the kernel's stub.
struct Pushed {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
static thread_local Pushed pushed;
unsigned int __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<void**>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared,
                               cudaStream_t) {
  return add({kernel, grid, block, shared});
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
  Launch launch{kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes};
  for (unsigned int i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeClusterDimension:
        launch.cluster = attribute.val.clusterDim.x;
        break;
      case cudaLaunchAttributeProgrammaticStreamSerialization:
        launch.programmatic = attribute.val.programmaticStreamSerializationAllowed != 0;
        break;
      case cudaLaunchAttributeCooperative:
        launch.cooperative = attribute.val.cooperative != 0;
        break;
      default:
        return cudaErrorNotSupported;
    }
  }
  return add(launch);
}
cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void**,
                                        size_t shared, cudaStream_t) {
  Launch launch{kernel, grid, block, shared};
  launch.cooperative = true;
  return add(launch);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (static_cast<size_t>(value) > kMaxShared) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(mutex);
  shared_limit[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrClusterLaunch:
      *value = 1;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kMaxShared);
      return cudaSuccess;
    default:
      return cudaErrorNotSupported;
  }
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*,
                                           const cudaLaunchConfig_t* config) {
  unsigned int size = 1;
  for (unsigned int i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) size = attribute.val.clusterDim.x;
  }
  *clusters = static_cast<int>(128 / size);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                : "an error of the runtime without a card";
}

}  // extern "C"
