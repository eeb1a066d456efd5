// Status texts and the device count.
#include <cuda_runtime.h>

#include "bitdance_kernels_cuda.h"

const char* bdk_cuda_status_string(int status) {
  if (status > 0) return cudaGetErrorString(static_cast<cudaError_t>(status));
  switch (status) {
    case BDK_OK:
      return "success";
    case BDK_BAD_DTYPE:
      return "dtype code not handled";
    case BDK_BAD_SIZE:
      return "size or argument out of range";
    case BDK_BAD_INDEX:
      return "index out of range";
    default:
      return "unknown status";
  }
}

int bdk_cuda_device_count(void) {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
