// patch_attention compiled for AVX-512.
#include "cpu/patch_attention/patch_attention.h"

namespace bdk {

const PatchAttentionLoops kPatchAttentionAvx512 = {patch_attention_forward,
                                                   patch_attention_backward};

}  // namespace bdk
