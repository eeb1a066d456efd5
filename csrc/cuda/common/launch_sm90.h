// Launches with what sm_90 adds: clusters of blocks, and a start before the kernel before has
// ended.
#pragma once

#include "cuda/common/launch.h"

namespace bdk {

struct LaunchSm90 {
  int device;
  void* stream;
  // The kernel may start before the one before it on the stream has ended; it waits for that one's
  // results itself.
  bool programmatic;
};

template <class Params>
cudaError_t launch_sm90(void (*kernel)(Params), const Params& params, int blocks, int threads,
                        int shared, int cluster, const LaunchSm90& how) {
  if (shared > 48 * 1024) {  // default limit of a block
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned int>(blocks));
  config.blockDim = dim3(static_cast<unsigned int>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = attributes;
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned int>(cluster);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  if (how.programmatic) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace bdk
