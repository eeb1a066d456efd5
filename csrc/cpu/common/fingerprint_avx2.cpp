// fingerprint in AVX2.
#include "cpu/common/fingerprint.h"

const bdk::AddBlocks bdk::kAddBlocksAvx2 = bdk::add_blocks;
