// The Python module bitdance_kernels._cpu.
#include "binding.h"
#include "bitdance_kernels.h"
#include "plan.h"
#include "signature.h"

PYBIND11_MODULE(_cpu, module) {
  const auto bind = [&](const char* name, auto* function) {
    bdk::bind(module, name, function, bdk_cpu_status_string);
  };
  bdk::bind_recording(module);
  bdk::bind_objects<bdk::evenly_spaced>(module, "evenly_spaced");
  bdk::bind_objects<bdk::readable>(module, "readable");
  bdk::bind_objects<bdk::call_again>(module, "call_again");
  bdk::bind_objects<bdk::call_key>(module, "call_key");
  bdk::bind_objects<bdk::planned>(module, "planned");
  bdk::bind_objects<bdk::signature>(module, "signature");
  module.def("isa_detected", &bdk_cpu_isa_detected);
  module.def("isa", &bdk_cpu_isa);
  bind("set_isa_limit", bdk_cpu_set_isa_limit);

  bind("adaln_norm", bdk_adaln_norm_cpu);
  bind("adaln_norm_backward", bdk_adaln_norm_backward_cpu);
  bind("bit_counts", bdk_bit_counts_cpu);
  bind("block_causal_attention", bdk_block_causal_attention_cpu);
  bind("block_causal_attention_backward", bdk_block_causal_attention_backward_cpu);
  bind("block_decode_attention", bdk_block_decode_attention_cpu);
  bind("conv3x3", bdk_conv3x3_cpu);
  bind("denoise_step", bdk_denoise_step_cpu);
  bind("finalize_bits", bdk_finalize_bits_cpu);
  bind("fingerprint", bdk_fingerprint_cpu);
  bind("flip_bits", bdk_flip_bits_cpu);
  bind("flip_signs", bdk_flip_signs_cpu);
  bind("gated_residual", bdk_gated_residual_cpu);
  bind("gated_residual_adaln", bdk_gated_residual_adaln_cpu);
  bind("gated_residual_backward", bdk_gated_residual_backward_cpu);
  bind("group_norm_silu", bdk_group_norm_silu_cpu);
  bind("group_norm_silu_backward", bdk_group_norm_silu_backward_cpu);
  bind("limit_memory", bdk_limit_memory_cpu);
  bind("limit_multiply_add", bdk_limit_multiply_add_cpu);
  bind("linear", bdk_linear_cpu);
  bind("linear_int8", bdk_linear_int8_cpu);
  bind("linear_gated_residual", bdk_linear_gated_residual_cpu);
  bind("linear_panels", bdk_linear_panels_cpu);
  bind("linear_swiglu", bdk_linear_swiglu_cpu);
  bind("pack_panels", bdk_pack_panels_cpu);
  bind("patch_attention", bdk_patch_attention_cpu);
  bind("patch_attention_backward", bdk_patch_attention_backward_cpu);
  bind("rms_norm", bdk_rms_norm_cpu);
  bind("rope", bdk_rope_cpu);
  bind("rope_append", bdk_rope_append_cpu);
  bind("swiglu", bdk_swiglu_cpu);
  bind("swiglu_backward", bdk_swiglu_backward_cpu);
  module.def("few_queries", &bdk_few_queries_cpu);
  bind("code_blocks", bdk_code_blocks_cpu);
  bind("hamming_distance", bdk_hamming_distance_cpu);
  bind("hamming_distance_few", bdk_hamming_distance_few_cpu);
  bind("nearest_codes", bdk_nearest_codes_cpu);
  bind("nearest_codes_few", bdk_nearest_codes_few_cpu);
  bind("lfq_entropy", bdk_lfq_entropy_cpu);
  bind("lfq_entropy_backward", bdk_lfq_entropy_backward_cpu);
  bind("lfq_quantize", bdk_lfq_quantize_cpu);
  bind("lfq_quantize_commitment", bdk_lfq_quantize_commitment_cpu);
  bind("lfq_quantize_commitment_backward", bdk_lfq_quantize_commitment_backward_cpu);
  bind("pack_signs", bdk_pack_signs_cpu);
  bind("unpack_signs", bdk_unpack_signs_cpu);
  bind("noise", bdk_noise_cpu);
}
