// The Python module bitdance_kernels._cpu.
#include "binding.h"
#include "bitdance_kernels.h"

PYBIND11_MODULE(_cpu, module) {
  const auto bind = [&](const char* name, auto* function) {
    bdk::bind(module, name, function, bdk_cpu_status_string);
  };
  module.def("isa_detected", &bdk_cpu_isa_detected);
  module.def("isa", &bdk_cpu_isa);
  bind("set_isa_limit", bdk_cpu_set_isa_limit);

  bind("lfq_quantize", bdk_lfq_quantize_cpu);
  bind("pack_signs", bdk_pack_signs_cpu);
  bind("unpack_signs", bdk_unpack_signs_cpu);
  bind("noise", bdk_noise_cpu);
}
