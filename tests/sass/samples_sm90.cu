// Kernels whose begin is right, or wrong in one way each, for the tests of the checks.
//
// launch_dependents() stands behind the loads of weights: without it ptxas moves loads of constant
// memory behind the wait.
#include "cuda/common/machine_sm90.cuh"

namespace bdk {

template <int kLoads>
__device__ void fetch(uint4 (&weights)[kLoads], const uint4* weight) {
#pragma unroll
  for (int i = 0; i < kLoads; ++i) weights[i] = load_weight(weight + i * 32 + threadIdx.x);
}

template <int kLoads>
__device__ void finish(const uint4 (&weights)[kLoads], const uint4* x, uint4* y) {
  uint4 sum = x[threadIdx.x];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    sum.x += weights[i].x, sum.y ^= weights[i].y, sum.z += weights[i].z, sum.w ^= weights[i].w;
  }
  y[threadIdx.x] = sum;
}

__global__ void __launch_bounds__(64) right(const uint4* weight, const uint4* x, uint4* y) {
  uint4 weights[4];
  fetch(weights, weight);
  launch_dependents();
  wait_for_previous();
  finish(weights, x, y);
}

// As a kernel with a norm is: a branch and a loop before the wait, one out of line.
__global__ void right_with_branches(const uint4* weight, const uint4* x, uint4* y, int n) {
  __shared__ uint4 copy[32];
  uint4 weights[4];
  if (threadIdx.x < 16 && n > 3) {
    for (int i = 0; i < n; ++i) copy[i % 32] = weight[1024 + i * n];
  }
  fetch(weights, weight);
  launch_dependents();
  wait_for_previous();
  __syncthreads();
  finish(weights, x, y);
  for (int i = 0; i < n; ++i) y[1024 + i] = copy[(i + threadIdx.x) % 32];
}

__global__ void loads_late(const uint4* weight, const uint4* x, uint4* y) {
  uint4 weights[4];
  wait_for_previous();
  fetch(weights, weight);
  finish(weights, x, y);
}

__global__ void stores_early(const uint4* weight, const uint4* x, uint4* y) {
  uint4 weights[4];
  fetch(weights, weight);
  if (threadIdx.x == 0) y[4096] = make_uint4(1, 2, 3, 4);
  launch_dependents();
  wait_for_previous();
  finish(weights, x, y);
}

__global__ void adds_early(const uint4* weight, const uint4* x, uint4* y, unsigned int* count) {
  uint4 weights[4];
  fetch(weights, weight);
  atomicAdd(count, 1u);
  launch_dependents();
  wait_for_previous();
  finish(weights, x, y);
}

__global__ void never_waits(const uint4* weight, const uint4* x, uint4* y) {
  uint4 weights[4];
  fetch(weights, weight);
  finish(weights, x, y);
}

// A thread may come past the wait of the others.
__global__ void waits_at_times(const uint4* weight, const uint4* x, uint4* y, int n) {
  uint4 weights[4];
  fetch(weights, weight);
  if (n > 3) wait_for_previous();
  finish(weights, x, y);
}

}  // namespace bdk
