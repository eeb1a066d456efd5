// patch_attention compiled for AVX2.
#include "cpu/patch_attention/patch_attention.h"

namespace bdk {

const PatchAttentionLoops kPatchAttentionAvx2 = {patch_attention_forward, patch_attention_backward};

}  // namespace bdk
