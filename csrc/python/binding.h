// Binds a C function of bitdance_kernels.h as it is declared there: pointers become integers
// (addresses), the GIL is released, and a status other than 0 becomes a Python IndexError or
// RuntimeError.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "bitdance_kernels.h"

namespace bdk {

template <class T>
using PythonArgument = std::conditional_t<std::is_pointer_v<T>, uintptr_t, T>;

template <class T>
T from_python(PythonArgument<T> value) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(value);
  } else {
    return value;
  }
}

template <class... Args>
void bind(pybind11::module_& module, const char* name, int (*function)(Args...),
          const char* (*status_string)(int)) {
  module.def(name, [=](PythonArgument<Args>... args) {
    int status;
    {
      pybind11::gil_scoped_release release;
      status = function(from_python<Args>(args)...);
    }
    if (status == BDK_BAD_INDEX) {
      throw pybind11::index_error(std::string(name) + ": " + status_string(status));
    }
    if (status != 0) {
      throw std::runtime_error(std::string(name) + ": " + status_string(status) + " (status " +
                               std::to_string(status) + ")");
    }
  });
}

}  // namespace bdk
