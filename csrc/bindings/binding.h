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
#include <vector>

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

// Pointers among arguments, in order.
template <class... Args>
std::vector<void*> pointers_of(const std::tuple<Args...>& arguments) {
  std::vector<void*> pointers;
  const auto add = [&](const auto& argument) {
    using T = std::decay_t<decltype(argument)>;
    if constexpr (std::is_pointer_v<T>) {
      pointers.push_back(const_cast<void*>(static_cast<const void*>(argument)));
    } else if constexpr (std::is_same_v<T, bdk_rows> || std::is_same_v<T, bdk_heads>) {
      pointers.push_back(argument.data);
    }
  };
  std::apply([&](const auto&... each) { (add(each), ...); }, arguments);
  return pointers;
}

// Calls the function with other pointers in the place of those among the arguments.
template <class... Args>
int call_with(int (*function)(Args...), std::tuple<Args...> arguments, void* const* pointers) {
  const auto put = [&](auto& argument) {
    using T = std::decay_t<decltype(argument)>;
    if constexpr (std::is_pointer_v<T>) {
      argument = static_cast<T>(*pointers++);
    } else if constexpr (std::is_same_v<T, bdk_rows> || std::is_same_v<T, bdk_heads>) {
      argument.data = *pointers++;
    }
  };
  std::apply([&](auto&... each) { (put(each), ...); }, arguments);
  return std::apply(function, arguments);
}

template <class... Args>
void bind(pybind11::module_& module, const char* name, int (*function)(Args...),
          const char* (*status_string)(int)) {
  module.def(name, [=](PythonArgument<Args>... args) {
    const std::tuple<Args...> converted(from_python<Args>(args)...);
    int status;
    {
      pybind11::gil_scoped_release release;
      status = std::apply(function, converted);
    }
    if (status != BDK_OK) raise(name, status, status_string);
    if (recorded_calls() == nullptr) return;
    const auto again = [=](void* const* pointers) {
      return call_with(function, converted, pointers);
    };
    recorded_calls()->push_back({name, status_string, again, pointers_of(converted)});
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
