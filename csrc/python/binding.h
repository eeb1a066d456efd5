// Binds a C function of bitdance_kernels.h as it is declared there: pointers become integers
// (addresses), a bdk_rows a tuple (address, stride, dtype code), the GIL is released, and a status
// other than 0 becomes a Python IndexError or RuntimeError. Calls can be recorded, see recording.h.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "bitdance_kernels.h"
#include "recording.h"

namespace bdk {

using PythonRows = std::tuple<uintptr_t, int64_t, int>;

template <class T>
using PythonArgument =
    std::conditional_t<std::is_pointer_v<T>, uintptr_t,
                       std::conditional_t<std::is_same_v<T, bdk_rows>, PythonRows, T>>;

template <class T>
T from_python(PythonArgument<T> value) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(value);
  } else if constexpr (std::is_same_v<T, bdk_rows>) {
    const auto& [data, stride, dtype] = value;
    return {reinterpret_cast<void*>(data), stride, dtype};
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
    const auto call = [=] {
      const int status = function(from_python<Args>(args)...);
      if (status != BDK_OK) raise(name, status, status_string);
    };
    {
      pybind11::gil_scoped_release release;
      call();
    }
    if (recorded_calls() != nullptr) recorded_calls()->push_back(call);
  });
}

// Adds the recording of what `bind` has bound.
inline void bind_recording(pybind11::module_& module) {
  pybind11::class_<Recording>(module, "Recording")
      .def("__call__", &Recording::replay, pybind11::call_guard<pybind11::gil_scoped_release>())
      .def("__len__", &Recording::size);
  module.def("start_recording", &start_recording);
  module.def("take_recording", &take_recording);
  module.def("stop_recording", &stop_recording);
}

}  // namespace bdk
