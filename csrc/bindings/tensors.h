// PyTorch's tensors as arguments, read through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <tuple>

#include "bitdance_kernels.h"
#include "common/dtype.h"
#include "dlpack.h"

namespace bdk {

// Types and functions of PyTorch, looked up with the first tensor; never destroyed.
class Pytorch {
 public:
  static const Pytorch& get() {
    // The GIL guards the initialization. C++'s own guard would deadlock: it is held while Python
    // runs and gives up the GIL, and another thread can wait for it with the GIL.
    static const Pytorch* found = nullptr;
    if (found == nullptr) found = new Pytorch();
    return *found;
  }

  // Whether the object is a Tensor or Parameter and not of a subclass.
  bool is_plain_tensor(PyObject* object) const {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    return type == tensor_.ptr() || type == parameter_.ptr();
  }

  // False for an object whose values are not strided memory; leaves no Python exception.
  bool borrow(PyObject* object, dlpack::Tensor* out) const {
    if (api_->borrow(object, out) == 0) return true;
    PyErr_Clear();
    return false;
  }

  // Whether the negative bit is set: the values are those in memory, negated.
  bool is_negated(PyObject* tensor) const { return is_true(PyObject_CallOneArg(is_neg_, tensor)); }

  // Number of elements of `item` bytes from a tensor's first element to the end of its storage;
  // negative if the storage ends before or is unknown.
  int64_t storage_ends_at(PyObject* tensor, int64_t item) const {
    try {
      const pybind11::handle handle(tensor);
      const auto bytes = handle.attr("untyped_storage")().attr("nbytes")().cast<int64_t>();
      return bytes / item - handle.attr("storage_offset")().cast<int64_t>();
    } catch (const pybind11::error_already_set&) {
      return -1;
    }
  }

  PyTypeObject* dtype() const { return reinterpret_cast<PyTypeObject*>(dtype_.ptr()); }

  bool requires_grad(PyObject* tensor) const {
    return is_true(PyObject_GetAttr(tensor, requires_grad_));
  }

 private:
  Pytorch() {
    const auto torch = pybind11::module_::import("torch");
    tensor_ = torch.attr("Tensor");
    parameter_ = torch.attr("nn").attr("Parameter");
    dtype_ = torch.attr("dtype");
    is_neg_ = pybind11::object(tensor_.attr("is_neg")).release().ptr();
    requires_grad_ = PyUnicode_InternFromString("requires_grad");
    const pybind11::object capsule = tensor_.attr("__dlpack_c_exchange_api__");
    api_ = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
    if (api_ == nullptr) throw pybind11::error_already_set();
    while (api_ != nullptr && api_->major != dlpack::kMajorVersion) api_ = api_->older;
    if (api_ == nullptr || api_->borrow == nullptr) {
      throw pybind11::import_error("PyTorch does not offer its tensors by DLPack 1");
    }
  }

  // Truth of a new reference, which is released; an exception counts as true and is cleared.
  static bool is_true(PyObject* value) {
    if (value == nullptr) PyErr_Clear();
    Py_XDECREF(value);  // True and False live on
    return value != Py_False;
  }

  pybind11::object tensor_, parameter_, dtype_;
  PyObject *is_neg_, *requires_grad_;
  const dlpack::ExchangeApi* api_;
};

inline dlpack::Tensor borrow(pybind11::handle object) {
  dlpack::Tensor tensor;
  if (!Pytorch::get().borrow(object.ptr(), &tensor)) {
    throw pybind11::type_error("an argument must be a tensor, an address or None");
  }
  return tensor;
}

inline int dtype_code(dlpack::DataType dtype) {
  if (dtype.code == dlpack::kFloat && dtype.bits == 32) return kFloat32;
  if (dtype.code == dlpack::kFloat && dtype.bits == 16) return kFloat16;
  if (dtype.code == dlpack::kBfloat && dtype.bits == 16) return kBFloat16;
  return -1;
}

// Whether a tensor has no elements. Its strides may be anything then, those of a gradient that was
// expanded are 0, and it is contiguous all the same.
inline bool is_empty(const dlpack::Tensor& tensor) {
  return std::find(tensor.shape, tensor.shape + tensor.dims, 0) != tensor.shape + tensor.dims;
}

// Stride in elements between the rows of a tensor [..., C]; false if the rows are not evenly spaced
// or the elements of a row are not adjacent. Dimensions from `dims` to the last are left out.
inline bool row_stride(const dlpack::Tensor& tensor, int64_t* stride, int dims) {
  const int last = tensor.dims - 1;
  if (last < 0) return false;
  *stride = tensor.shape[last];
  if (is_empty(tensor)) return true;
  if (tensor.strides[last] != 1 && tensor.shape[last] != 1) return false;
  bool first = true;
  int64_t span = 0;  // stride of the next outer dimension if the rows are evenly spaced
  for (int i = dims - 1; i >= 0; --i) {
    const int64_t size = tensor.shape[i], step = tensor.strides[i];
    if (size == 1) continue;
    if (first) {
      *stride = step;
      first = false;
    } else if (step != span) {
      return false;
    }
    span = step * size;
  }
  return true;
}

inline bool row_stride(const dlpack::Tensor& tensor, int64_t* stride) {
  return row_stride(tensor, stride, tensor.dims - 1);
}

// Whether the rows of a tensor on the CPU, each repeated some times, are evenly spaced, as those
// of [B, 1, C] expanded to [B, T, C] are.
inline bool repeated_rows(const dlpack::Tensor& tensor, int64_t* stride, int64_t* repeat) {
  const int along = tensor.dims - 2;
  if (along < 0 || tensor.strides[along] != 0 || tensor.device.type != dlpack::kCpu) return false;
  *repeat = tensor.shape[along];
  return *repeat > 0 && row_stride(tensor, stride, along);
}

// A tensor [..., C] with evenly spaced or repeated rows, a tuple (address, stride, dtype code), or
// None.
inline bdk_rows rows_of(pybind11::handle object) {
  if (object.is_none()) return {nullptr, 0, kFloat32, 1};
  if (PyTuple_Check(object.ptr())) {
    const auto [data, stride, dtype] = object.cast<std::tuple<uintptr_t, int64_t, int>>();
    return {reinterpret_cast<void*>(data), stride, dtype, 1};
  }
  const dlpack::Tensor tensor = borrow(object);
  bdk_rows rows = {tensor.data, 0, dtype_code(tensor.dtype), 1};
  if (!row_stride(tensor, &rows.stride) && !repeated_rows(tensor, &rows.stride, &rows.repeat)) {
    throw pybind11::value_error("the rows of a tensor must be evenly spaced");
  }
  return rows;
}

// A tensor [batch, tokens, heads, channels] with adjacent channels.
inline bdk_heads heads_of(pybind11::handle object) {
  const dlpack::Tensor tensor = borrow(object);
  if (tensor.dims != 4 || (tensor.strides[3] != 1 && tensor.shape[3] != 1 && !is_empty(tensor))) {
    throw pybind11::value_error("a tensor must be [B, T, H, D] with adjacent channels");
  }
  return {tensor.data, tensor.strides[0], tensor.strides[1], tensor.strides[2],
          dtype_code(tensor.dtype)};
}

// The memory of a tensor or an array, an address, or null for None.
inline void* address_of(pybind11::handle object) {
  if (object.is_none()) return nullptr;
  if (PyObject_CheckBuffer(object.ptr())) {  // NumPy's arrays; PyTorch may not be there
    Py_buffer buffer;
    if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_STRIDES) != 0) {
      throw pybind11::error_already_set();
    }
    void* const address = buffer.buf;
    PyBuffer_Release(&buffer);  // the caller holds the array
    return address;
  }
  if (PyLong_Check(object.ptr())) return reinterpret_cast<void*>(object.cast<uintptr_t>());
  return borrow(object).data;
}

// evenly_spaced(*tensors): whether the rows of each tensor [..., C] can be read where they are.
inline pybind11::object evenly_spaced(PyObject* const* tensors, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    int64_t stride;
    if (!row_stride(borrow(tensors[i]), &stride)) return pybind11::bool_(false);
  }
  return pybind11::bool_(true);
}

// readable(*tensors): the same where each row may be repeated.
inline pybind11::object readable(PyObject* const* tensors, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    const dlpack::Tensor tensor = borrow(tensors[i]);
    int64_t stride, repeat;
    if (!row_stride(tensor, &stride) && !repeated_rows(tensor, &stride, &repeat)) {
      return pybind11::bool_(false);
    }
  }
  return pybind11::bool_(true);
}

}  // namespace bdk
