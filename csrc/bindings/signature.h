// Signature of a call: everything that an op's checks and its choice of a backend may depend on, as
// bytes. A call with the signature of an earlier, valid one is valid and takes the same backend. Of
// an address the signature has the value modulo 16 and, where a written argument overlaps another,
// the distance between them.
#pragma once

#include <string.h>

#include "tensors.h"
#include "thread_state.h"

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

// False if an argument has properties that a signature does not cover.
inline bool write_signature(PyObject* arguments, Py_ssize_t size, Gradients gradients,
                            uint64_t written, SignatureWriter& out) {
  if (size > kMaxArguments) return false;
  Extent extents[kMaxArguments];
  for (Py_ssize_t i = 0; i < size; ++i) {
    extents[i] = {0, 0};
    if (!write_argument(PyTuple_GET_ITEM(arguments, i), gradients, out, &extents[i])) return false;
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
  return !out.full();
}

// signature(arguments, gradients, written): signature of a tuple of arguments. gradients: a number
// of `Gradients`; written: bit i is set if the op writes argument i. None if an argument has
// properties that a signature does not cover.
inline pybind11::object signature(PyObject* const* given, Py_ssize_t count) {
  if (count != 3 || !PyTuple_Check(given[0])) {
    throw pybind11::type_error("signature(arguments: tuple, gradients: int, written: int)");
  }
  const auto gradients = static_cast<Gradients>(PyLong_AsLong(given[1]));
  const uint64_t written = PyLong_AsUnsignedLongLong(given[2]);
  if (PyErr_Occurred()) throw pybind11::error_already_set();
  SignatureWriter out;
  const Py_ssize_t size = PyTuple_GET_SIZE(given[0]);
  if (!write_signature(given[0], size, gradients, written, out)) return pybind11::none();
  return out.bytes();
}

// Appends a name and a zero; false for an object that is no name.
inline bool write_name(PyObject* object, SignatureWriter& out) {
  Py_ssize_t size;
  const char* name =
      PyUnicode_CheckExact(object) ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
  if (name == nullptr) PyErr_Clear();
  if (name == nullptr || memchr(name, 0, static_cast<size_t>(size)) != nullptr) return false;
  out.write(name, size + 1);
  return true;
}

// The key of a call: the requested backend, which is the last argument, the name in the context
// variable `by_default`, and the signature of the other arguments. None where the signature is, or
// outside of plain threads (see thread_state.h).
inline pybind11::object key_of(PyObject* arguments, PyObject* gradients, PyObject* written,
                               PyObject* by_default, PyObject* plain_threads) {
  const ThreadState& thread = ThreadState::get();
  if (!thread.is_plain(plain_threads)) return pybind11::none();
  const auto rule = static_cast<Gradients>(PyLong_AsLong(gradients));
  const uint64_t bits = PyLong_AsUnsignedLongLong(written);
  PyObject* found;
  if (PyErr_Occurred() || PyContextVar_Get(by_default, nullptr, &found) != 0) {
    throw pybind11::error_already_set();
  }
  const auto name = pybind11::reinterpret_steal<pybind11::object>(found);
  SignatureWriter out;
  const Py_ssize_t size = PyTuple_GET_SIZE(arguments) - 1;
  if (found == nullptr || !write_name(PyTuple_GET_ITEM(arguments, size), out) ||
      !write_name(found, out) ||
      !write_signature(arguments, size, thread.records_gradients() ? rule : Gradients::kIgnored,
                       bits, out)) {
    return pybind11::none();
  }
  return out.bytes();
}

// call_key(arguments, gradients, written, default, plain_threads)
inline pybind11::object call_key(PyObject* const* given, Py_ssize_t count) {
  if (count != 5 || !PyTuple_Check(given[0]) || PyTuple_GET_SIZE(given[0]) == 0) {
    throw pybind11::type_error(
        "call_key(arguments: tuple, gradients: int, written: int, default: ContextVar, "
        "plain_threads: set)");
  }
  return key_of(given[0], given[1], given[2], given[3], given[4]);
}

// call_again(arguments, gradients, written, default, plain_threads, runs): what the function that
// `runs` has for the key of a call returns for its arguments; NotImplemented if it has none.
inline pybind11::object call_again(PyObject* const* given, Py_ssize_t count) {
  if (count != 6 || !PyTuple_Check(given[0]) || PyTuple_GET_SIZE(given[0]) == 0) {
    throw pybind11::type_error(
        "call_again(arguments: tuple, gradients: int, written: int, default: ContextVar, "
        "plain_threads: set, runs: dict)");
  }
  const auto unknown = pybind11::reinterpret_borrow<pybind11::object>(Py_NotImplemented);
  const auto key = key_of(given[0], given[1], given[2], given[3], given[4]);
  if (key.is_none()) return unknown;
  const auto run =
      pybind11::reinterpret_borrow<pybind11::object>(PyDict_GetItemWithError(given[5], key.ptr()));
  if (!run) {
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    return unknown;
  }
  PyObject* result = PyObject_CallOneArg(run.ptr(), given[0]);
  if (result == nullptr) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(result);
}

}  // namespace bdk
