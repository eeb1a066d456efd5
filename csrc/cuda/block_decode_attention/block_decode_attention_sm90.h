// The entry of block_decode_attention_sm90.cu for block_decode_attention.cu.
#pragma once

#include "cuda/block_decode_attention/block_decode_attention.cuh"
#include "cuda/common/launch_sm90.h"

namespace bdk {

// Launches the kernel whose splits are the blocks of a cluster. params.row_tiles is set.
template <class T>
cudaError_t decode_in_clusters(const DecodeParams& params, int blocks, const LaunchSm90& how);

}  // namespace bdk
