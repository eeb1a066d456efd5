// fingerprint in AVX-512.
#include "cpu/common/fingerprint.h"

const bdk::AddBlocks bdk::kAddBlocksAvx512 = bdk::add_blocks;
