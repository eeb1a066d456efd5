// Binds a C function of bitdance_kernels.h as it is declared there: where it has a pointer,
// bdk_rows or bdk_heads, Python gives a tensor (see tensors.h for what else), the GIL is released,
// and a status other than 0 becomes a Python IndexError or RuntimeError. Calls can be recorded, see
// recording.h.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "bitdance_kernels.h"
#include "recording.h"
#include "tensors.h"

namespace bdk {

template <class T>
using PythonArgument = std::conditional_t<std::is_pointer_v<T> || std::is_same_v<T, bdk_rows> ||
                                              std::is_same_v<T, bdk_heads>,
                                          pybind11::handle, T>;

template <class T>
T from_python(PythonArgument<T> value) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(address_of(value));
  } else if constexpr (std::is_same_v<T, bdk_rows>) {
    return rows_of(value);
  } else if constexpr (std::is_same_v<T, bdk_heads>) {
    return heads_of(value);
  } else {
    return value;
  }
}

inline void raise(const char* name, int status, const char* (*status_string)(int)) {
  if (status == BDK_BAD_INDEX) {
    throw pybind11::index_error(std::string(name) + ": " + status_string(status));
  }
  throw std::runtime_error(std::string(name) + ": " + status_string(status) + " (status " +
                           std::to_string(status) + ")");
}

template <class... Args>
void bind(pybind11::module_& module, const char* name, int (*function)(Args...),
          const char* (*status_string)(int)) {
  module.def(name, [=](PythonArgument<Args>... args) {
    const std::tuple<Args...> converted(from_python<Args>(args)...);
    const auto call = [=] {
      const int status = std::apply(function, converted);
      if (status != BDK_OK) raise(name, status, status_string);
    };
    {
      pybind11::gil_scoped_release release;
      call();
    }
    if (recorded_calls() != nullptr) recorded_calls()->push_back(call);
  });
}

// Binds a function of Python objects by METH_FASTCALL, the calling convention with the least
// overhead.
template <pybind11::object (*function)(PyObject* const*, Py_ssize_t)>
PyObject* call_with_objects(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  try {
    return function(arguments, count).release().ptr();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <pybind11::object (*function)(PyObject* const*, Py_ssize_t)>
void bind_objects(pybind11::module_& module, const char* name) {
  // METH_FASTCALL functions have another type than the table says.
  const auto call = reinterpret_cast<void (*)()>(&call_with_objects<function>);
  static PyMethodDef method = {name, reinterpret_cast<PyCFunction>(call), METH_FASTCALL, nullptr};
  module.attr(name) =
      pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&method, nullptr));
}

// Adds the functions that record and replay what `bind` has bound.
inline void bind_recording(pybind11::module_& module) {
  pybind11::class_<Recording>(module, "Recording")
      .def("__call__", &Recording::replay, pybind11::call_guard<pybind11::gil_scoped_release>())
      .def("__len__", &Recording::size);
  module.def("start_recording", &start_recording);
  module.def("take_recording", &take_recording);
  module.def("stop_recording", &stop_recording);
}

}  // namespace bdk
