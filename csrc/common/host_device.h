// Marks functions that both the C++ and the CUDA kernels use, so that CPU tests run the same code.
#pragma once

#ifdef __CUDACC__
#define BDK_HOST_DEVICE __host__ __device__
#else
#define BDK_HOST_DEVICE
#endif
