// Times the exchanges of exchange.cuh on a card: a library for exchange.py, without dependencies.
//
// Every function fills `us` with the microseconds of a round in each of `repeats` launches and
// returns 0, a positive cudaError_t, or -1 - ExchangeFault.
#include <cuda_runtime.h>

#include <vector>

#include "exchange.cuh"

namespace bdk {
namespace {

constexpr int kLooks = 1 << 20;  // some tenths of a second

__global__ void __launch_bounds__(kExchangeThreads) words_kernel(ExchangeParams p) {
  __shared__ int failed;
  exchange_words(p, &failed);
}

// One counter of all blocks: an addition that releases, and looks that acquire.
__global__ void __launch_bounds__(kExchangeThreads) counter_kernel(ExchangeParams p) {
  __shared__ int failed;
  auto* counter = reinterpret_cast<unsigned int*>(p.words);
  if (threadIdx.x == 0) failed = 0;
  __syncthreads();
  for (int round = 0; round < p.rounds && failed == 0; ++round) {
    if (threadIdx.x == 0) {
      const unsigned int target = static_cast<unsigned int>(round + 1) * gridDim.x;
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
      unsigned int seen = 0;
      for (int look = 0; look < p.looks && seen < target; ++look) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      }
      if (seen < target) {
        failed = 1;
        p.faults[kHung] = 1;
      }
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kExchangeThreads) cluster_kernel(ExchangeParams p, int size) {
  __shared__ uint4 received[2 * kClusterWords];
  exchange_cluster(p, size, received);
}

__global__ void __launch_bounds__(kExchangeThreads) chain_kernel(uint32_t* counters) {
  exchange_chain(counters);
}

// Memory of a call, freed at its end.
struct Memory {
  void* data = nullptr;
  int* faults = nullptr;
  cudaError_t error;
  explicit Memory(size_t bytes) {
    error = cudaMalloc(&data, bytes);
    if (error == cudaSuccess) error = cudaMalloc(&faults, kExchangeFaults * sizeof(int));
  }
  ~Memory() {
    cudaFree(data);
    cudaFree(faults);
  }
};

struct Timer {
  cudaEvent_t begin, end;
  Timer() {
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
  }
  ~Timer() {
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
};

// Times `launch` after an untimed one; `reset` restores what a launch has changed.
template <class Reset, class Launch>
int measure(Memory& memory, int rounds, int repeats, float* us, Reset reset, Launch launch) {
  if (memory.error != cudaSuccess) return memory.error;
  const Timer timer;
  for (int i = -1; i < repeats; ++i) {
    cudaError_t error = cudaMemset(memory.faults, 0, kExchangeFaults * sizeof(int));
    if (error == cudaSuccess) error = reset();
    if (error == cudaSuccess) error = cudaEventRecord(timer.begin);
    if (error == cudaSuccess) error = launch();
    if (error == cudaSuccess) error = cudaEventRecord(timer.end);
    int faults[kExchangeFaults] = {};
    if (error == cudaSuccess) {
      error = cudaMemcpy(faults, memory.faults, sizeof faults, cudaMemcpyDeviceToHost);
    }
    if (error != cudaSuccess) return error;
    if (faults[kWrong] != 0) return -1 - kWrong;
    if (faults[kHung] != 0) return -1 - kHung;
    float ms = 0;
    error = cudaEventElapsedTime(&ms, timer.begin, timer.end);
    if (error != cudaSuccess) return error;
    if (i >= 0) us[i] = 1e3f * ms / static_cast<float>(rounds);
  }
  return 0;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, size_t shared, int cluster,
                   bool cooperative, bool programmatic, cudaStream_t stream,
                   Arguments... arguments) {
  cudaLaunchAttribute attributes[3];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned int>(blocks));
  config.blockDim = dim3(kExchangeThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned int>(cluster), 1, 1};
  }
  if (cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (programmatic) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace
}  // namespace bdk

extern "C" {

// Words of `bytes` in all between `blocks` blocks.
int exchange_words(int blocks, int bytes, int rounds, int repeats, float* us) {
  using namespace bdk;
  const int count = bytes / 16;
  if (count > blocks * kExchangeThreads) return cudaErrorInvalidValue;
  const size_t size = size_t{kRing} * count * sizeof(uint4);
  Memory memory(size);
  const ExchangeParams p{static_cast<uint4*>(memory.data), count, rounds, kLooks, memory.faults};
  return measure(
      memory, rounds, repeats, us, [&] { return cudaMemset(memory.data, 0xFF, size); },
      [&] { return launch(words_kernel, blocks, 0, 1, true, false, nullptr, p); });
}

int exchange_counter(int blocks, int rounds, int repeats, float* us) {
  using namespace bdk;
  Memory memory(sizeof(uint4));
  const ExchangeParams p{static_cast<uint4*>(memory.data), 1, rounds, kLooks, memory.faults};
  return measure(
      memory, rounds, repeats, us, [&] { return cudaMemset(memory.data, 0, sizeof(uint4)); },
      [&] { return launch(counter_kernel, blocks, 0, 1, true, false, nullptr, p); });
}

int exchange_cluster(int clusters, int size, int rounds, int repeats, float* us) {
  using namespace bdk;
  Memory memory(sizeof(uint4));
  const ExchangeParams p{static_cast<uint4*>(memory.data), 1, rounds, 0, memory.faults};
  if (size > 8) {
    const cudaError_t error =
        cudaFuncSetAttribute(cluster_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  return measure(
      memory, rounds, repeats, us, [] { return cudaSuccess; },
      [&] {
        return launch(cluster_kernel, clusters * size, 0, size, false, false, nullptr, p, size);
      });
}

// A captured chain of `rounds` kernels, each with so much shared memory.
int exchange_chain(int blocks, int shared, int cluster, int programmatic, int rounds, int repeats,
                   float* us) {
  using namespace bdk;
  Memory memory(size_t(blocks) * kExchangeThreads * sizeof(uint32_t));
  if (memory.error != cudaSuccess) return memory.error;
  cudaError_t error =
      cudaFuncSetAttribute(chain_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  cudaStream_t stream;
  error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return error;
  auto* counters = static_cast<uint32_t*>(memory.data);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  for (int i = 0; error == cudaSuccess && i < rounds; ++i) {
    error = launch(chain_kernel, blocks, size_t(shared), cluster, false, programmatic != 0 && i > 0,
                   stream, counters);
  }
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (error == cudaSuccess) error = ended;
  if (error == cudaSuccess) error = cudaGraphInstantiate(&ready, graph, 0);
  int status = error;
  if (error == cudaSuccess) {
    const size_t size = size_t(blocks) * kExchangeThreads;
    status = measure(
        memory, rounds, repeats, us,
        [&] { return cudaMemset(memory.data, 0, size * sizeof(uint32_t)); },
        [&] { return cudaGraphLaunch(ready, nullptr); });
    std::vector<uint32_t> counted(size);
    if (status == 0) {
      status =
          cudaMemcpy(counted.data(), memory.data, size * sizeof(uint32_t), cudaMemcpyDeviceToHost);
    }
    for (uint32_t value : counted) {
      if (status == 0 && value != static_cast<uint32_t>(rounds)) status = -1 - kWrong;
    }
  }
  if (ready != nullptr) cudaGraphExecDestroy(ready);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return status;
}

}  // extern "C"
