// Some kernels of the CPU from several threads at a time, with 1 to 8 threads of their own, on the
// same inputs. Compiled with -fsanitize=thread and with this folder before csrc in the include
// path.
#include <stdint.h>

#include <thread>
#include <vector>

#include "bitdance_kernels.h"
#include "common/dtype.h"

namespace {

constexpr int64_t kRows = 37, kChannels = 40;
constexpr int kCallers = 3;

struct Inputs {
  std::vector<uint8_t> packed = std::vector<uint8_t>(kRows * kChannels, 0x5A);
  std::vector<float> x = std::vector<float>(kRows * kChannels, 0.5f);
  std::vector<float> weight = std::vector<float>(kChannels, 1.5f);
};

bdk_rows rows_of(const std::vector<float>& values) {
  return {const_cast<float*>(values.data()), kChannels, bdk::kFloat32, 1};
}

bool call_all(const Inputs& inputs, int threads) {
  std::vector<int64_t> counts(8 * kChannels);
  std::vector<float> grad_x(kRows * kChannels), grad_scale(grad_x), grad_shift(grad_x);
  std::vector<float> grad_weight(kChannels), grad_bias(kChannels), moments(2 * kRows);
  const bdk_rows x = rows_of(inputs.x);
  return bdk_bit_counts_cpu(inputs.packed.data(), counts.data(), kRows, kChannels, threads) ==
             BDK_OK &&
         // The gradients of the vectors are sums over rows of which other threads have made the
         // moments.
         bdk_adaln_norm_backward_cpu(x, x, x, inputs.weight.data(), inputs.weight.data(),
                                     rows_of(grad_x), rows_of(grad_scale), rows_of(grad_shift),
                                     grad_weight.data(), grad_bias.data(), moments.data(), kRows,
                                     kChannels, 1e-6f, threads) == BDK_OK &&
         counts[1] == kRows && grad_bias[0] != 0.0f;
}

}  // namespace

int main() {
  const Inputs inputs;
  bool right[kCallers] = {};
  for (int threads = 1; threads <= 8; ++threads) {
    std::vector<std::thread> callers;
    for (bool& each : right) {
      callers.emplace_back([&] { each = call_all(inputs, threads); });
    }
    for (std::thread& caller : callers) caller.join();
    for (bool each : right) {
      if (!each) return 2;
    }
  }
  return 0;
}
