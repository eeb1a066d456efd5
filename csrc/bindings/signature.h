// Signature of a call: everything that an op's checks and its choice of a backend may depend on, as
// bytes. A call with the signature of an earlier, valid one is valid and takes the same backend. Of
// an address the signature has the value modulo 16 and, where a written argument overlaps another,
// the distance between them.
#pragma once

#include <string.h>

#include "tensors.h"

namespace bdk {

// Appends values to a buffer of fixed size.
class SignatureWriter {
 public:
  template <class T>
  void write(T value) {
    write(&value, 1);
  }

  template <class T>
  void write(const T* values, int64_t count) {
    const size_t bytes = sizeof(T) * static_cast<size_t>(count);
    if (bytes > sizeof bytes_ - size_) {
      full_ = true;
      return;
    }
    memcpy(bytes_ + size_, values, bytes);
    size_ += bytes;
  }

  bool full() const { return full_; }
  pybind11::bytes bytes() const { return {bytes_, size_}; }

 private:
  char bytes_[2048];
  size_t size_ = 0;
  bool full_ = false;
};

// Bytes from the first to the last of a tensor.
struct Extent {
  uintptr_t begin, end;
};

// No allocation lies below this address, except in the heap of a Python that is not
// position-independent. A tensor whose storage was freed has the offset of its view as its address.
constexpr uintptr_t kLowAddress = uintptr_t{1} << 40;

// What a signature does about tensors that require grad: where no gradient is recorded, or the op
// has none, or records it.
enum class Gradients { kIgnored, kRefused, kNoted };

// False for a tensor that is not dense memory on the CPU or a CUDA device, or that is refused.
inline bool write_tensor(PyObject* object, Gradients gradients, SignatureWriter& out,
                         Extent* extent) {
  const Pytorch& pytorch = Pytorch::get();
  dlpack::Tensor tensor;
  if (!pytorch.is_plain_tensor(object) || !pytorch.borrow(object, &tensor)) return false;
  const bool known_device =
      tensor.device.type == dlpack::kCpu || tensor.device.type == dlpack::kCuda;
  // No memory: the tensor is empty or fake.
  if (!known_device || tensor.data == nullptr || pytorch.is_negated(object)) return false;
  if (gradients != Gradients::kIgnored && pytorch.requires_grad(object)) {
    if (gradients == Gradients::kRefused) return false;
    out.write('g');
  }
  out.write('t');
  out.write(tensor.dtype.code);
  out.write(tensor.dtype.bits);
  out.write(tensor.dtype.lanes);
  out.write(tensor.device.type);
  out.write(tensor.device.index);
  const auto address = reinterpret_cast<uintptr_t>(tensor.data);
  out.write(static_cast<uint8_t>(address % 16));
  out.write(tensor.dims);
  out.write(tensor.shape, tensor.dims);
  out.write(tensor.strides, tensor.dims);
  int64_t last = 0;
  for (int i = 0; i < tensor.dims; ++i) last += (tensor.shape[i] - 1) * tensor.strides[i];
  const int64_t item = tensor.dtype.bits / 8 * tensor.dtype.lanes;
  *extent = {address, address + static_cast<uintptr_t>((last + 1) * item)};
  return address >= kLowAddress || pytorch.storage_ends_at(object, item) >= last + 1;
}

inline bool write_argument(PyObject* object, Gradients gradients, SignatureWriter& out,
                           Extent* extent) {
  if (object == Py_None) {
    out.write('n');
  } else if (PyBool_Check(object)) {
    out.write(object == Py_True ? 'y' : 'f');
  } else if (PyFloat_CheckExact(object)) {
    out.write('d');
    out.write(PyFloat_AS_DOUBLE(object));
  } else if (PyLong_CheckExact(object)) {
    int overflow;
    const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0) return false;
    out.write('i');
    out.write(value);
  } else if (Py_TYPE(object) == Pytorch::get().dtype()) {
    out.write('D');
    out.write(object);  // there is one object per dtype, for ever
  } else {
    return write_tensor(object, gradients, out, extent);
  }
  return true;
}

constexpr Py_ssize_t kMaxArguments = 64;

// signature(arguments, gradients, written = 0): signature of a tuple of arguments. gradients: a
// number of `Gradients`; written: bit i is set if the op writes argument i. None if an argument has
// properties that a signature does not cover.
inline pybind11::object signature(PyObject* const* arguments, Py_ssize_t count) {
  if (count < 2 || count > 3 || !PyTuple_Check(arguments[0])) {
    throw pybind11::type_error("signature(arguments: tuple, gradients: int, written: int = 0)");
  }
  const auto gradients = static_cast<Gradients>(PyLong_AsLong(arguments[1]));
  const Py_ssize_t size = PyTuple_GET_SIZE(arguments[0]);
  const uint64_t written = count == 3 ? PyLong_AsUnsignedLongLong(arguments[2]) : 0;
  if (PyErr_Occurred()) throw pybind11::error_already_set();
  if (size > kMaxArguments) return pybind11::none();
  SignatureWriter out;
  Extent extents[kMaxArguments];
  for (Py_ssize_t i = 0; i < size; ++i) {
    extents[i] = {0, 0};
    PyObject* argument = PyTuple_GET_ITEM(arguments[0], i);
    if (!write_argument(argument, gradients, out, &extents[i])) return pybind11::none();
  }
  for (Py_ssize_t i = 0; written != 0 && i < size; ++i) {
    if ((written >> i & 1) == 0) continue;
    for (Py_ssize_t j = 0; j < size; ++j) {
      if (i == j || extents[i].begin >= extents[j].end || extents[j].begin >= extents[i].end) {
        continue;
      }
      out.write('o');
      out.write(static_cast<int8_t>(i));
      out.write(static_cast<int8_t>(j));
      out.write(extents[j].begin - extents[i].begin);
    }
  }
  return out.full() ? pybind11::object(pybind11::none()) : out.bytes();
}

}  // namespace bdk
