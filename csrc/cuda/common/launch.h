// Host-side helpers of every CUDA entry point: the device guard and the launch status.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace bdk {

// Makes `device` current for a scope. `status` tells whether that worked; it fails without a
// driver.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess && previous_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t status() const { return status_; }

 private:
  cudaError_t status_;
  int previous_ = -1;
  bool changed_ = false;
};

// Blocks for a grid-stride loop over `count` items: enough to fill any card (132 multiprocessors on
// H100 and H200), few enough that each block handles several items if there are many.
inline unsigned int grid_blocks(int64_t count, int64_t items_per_block) {
  constexpr int64_t kMax = 132 * 32;
  const int64_t blocks = (count + items_per_block - 1) / items_per_block;
  return static_cast<unsigned int>(blocks < kMax ? blocks : kMax);
}

}  // namespace bdk
