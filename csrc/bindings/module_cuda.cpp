// The Python module bitdance_kernels._cuda.
#include "binding.h"
#include "bitdance_kernels_cuda.h"

PYBIND11_MODULE(_cuda, module) {
  const auto bind = [&](const char* name, auto* function) {
    bdk::bind(module, name, function, bdk_cuda_status_string);
  };
  module.def("device_count", &bdk_cuda_device_count);
  module.attr("architectures") = BDK_CUDA_ARCHS;

  bind("block_decode_attention", bdk_block_decode_attention_cuda);
  bind("denoise_patch", bdk_denoise_patch_cuda);
  module.def("denoise_patch_max_rows", &bdk_denoise_patch_max_rows);
  bind("denoise_step", bdk_denoise_step_cuda);
  bind("denoise_step_linear", bdk_denoise_step_linear_cuda);
  bind("finalize_bits", bdk_finalize_bits_cuda);
  bind("adaln_norm", bdk_adaln_norm_cuda);
  bind("adaln_norm_backward", bdk_adaln_norm_backward_cuda);
  bind("flip_bits", bdk_flip_bits_cuda);
  bind("flip_signs", bdk_flip_signs_cuda);
  bind("gated_residual", bdk_gated_residual_cuda);
  bind("gated_residual_adaln", bdk_gated_residual_adaln_cuda);
  bind("gated_residual_adaln_backward", bdk_gated_residual_adaln_backward_cuda);
  bind("gated_residual_backward", bdk_gated_residual_backward_cuda);
  bind("group_norm_silu", bdk_group_norm_silu_cuda);
  bind("group_norm_silu_backward", bdk_group_norm_silu_backward_cuda);
  bind("hamming_distance", bdk_hamming_distance_cuda);
  bind("nearest_codes", bdk_nearest_codes_cuda);
  bind("pack_signs", bdk_pack_signs_cuda);
  bind("patch_attention", bdk_patch_attention_cuda);
  bind("rms_norm_qkv", bdk_rms_norm_qkv_cuda);
  bind("rope_append", bdk_rope_append_cuda);
  bind("skinny_product", bdk_skinny_product_cuda);
  bind("unpack_signs", bdk_unpack_signs_cuda);
  bind("noise", bdk_noise_cuda);
}
