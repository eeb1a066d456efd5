// The part of DLPack's C interface that is used. PyTorch (2.10 and later) fills it in for a tensor
// in about twenty nanoseconds, and this library need not be compiled against PyTorch. Layouts of
// version 1: https://dmlc.github.io/dlpack/latest/c_api.html.
#pragma once

#include <stdint.h>

namespace bdk::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr int32_t kCpu = 1, kCuda = 2;              // Device::type
constexpr uint8_t kFloat = 2, kBfloat = 4;          // DataType::code
constexpr char kCapsule[] = "dlpack_exchange_api";  // under Tensor.__dlpack_c_exchange_api__

struct Device {
  int32_t type, index;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

// Borrowed: valid as long as the tensor is and keeps its shape.
struct Tensor {
  void* data;
  Device device;
  int32_t dims;
  DataType dtype;
  int64_t *shape, *strides;  // strides in elements
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* older;
  void *allocate, *from_python, *to_python;
  // 0, or -1 with a Python exception set.
  int (*borrow)(void* python_tensor, Tensor* out);
  void* current_stream;
};

}  // namespace bdk::dlpack
