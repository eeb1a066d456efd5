// What PyTorch does to the calls of a thread: modes, transforms, forward-mode AD, the profiler.
#pragma once

#include <pybind11/pybind11.h>

namespace bdk {

// Private entries of PyTorch, looked up with the first call; never destroyed. Where one is missing,
// no thread is plain.
class ThreadState {
 public:
  static const ThreadState& get() {
    static const ThreadState* found = nullptr;  // guarded by the GIL, see Pytorch::get
    if (found == nullptr) found = new ThreadState();
    return *found;
  }

  // Whether nothing but plain PyTorch sees the thread's calls: its dispatch keys, as a number, are
  // in the set `plain_keys`, and neither forward-mode AD, a mode nor the profiler is on.
  bool is_plain(PyObject* plain_keys) const {
    if (!complete_) return false;
    const auto keys = own(PyObject_CallNoArgs(thread_keys_.ptr()));
    const auto number = own(PyObject_CallOneArg(raw_repr_.ptr(), keys.ptr()));
    const int found = PySet_Contains(plain_keys, number.ptr());
    if (found < 0) throw pybind11::error_already_set();
    return found == 1 && !is_on(is_function_mode_) && !is_on(is_profiling_) && !in_forward_mode();
  }

  bool records_gradients() const { return is_on(is_grad_enabled_); }

 private:
  ThreadState() {
    const auto torch = pybind11::module_::import("torch");
    forward_mode_ = pybind11::module_::import("torch.autograd.forward_ad");
    level_ = PyUnicode_InternFromString("_current_level");
    is_grad_enabled_ = torch.attr("is_grad_enabled");
    try {
      const pybind11::object c = torch.attr("_C");
      thread_keys_ = c.attr("_dispatch_tls_local_include_set");
      raw_repr_ = c.attr("DispatchKeySet").attr("raw_repr");
      is_function_mode_ = c.attr("_is_torch_function_mode_enabled");
      is_profiling_ = c.attr("_autograd").attr("_profiler_enabled");
      complete_ = true;
    } catch (const pybind11::error_already_set&) {
    }
  }

  static pybind11::object own(PyObject* object) {
    if (object == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(object);
  }

  static bool is_on(const pybind11::object& function) {
    return own(PyObject_CallNoArgs(function.ptr())).ptr() != Py_False;
  }

  bool in_forward_mode() const {
    const auto level = own(PyObject_GetAttr(forward_mode_.ptr(), level_));
    return PyLong_AsLong(level.ptr()) >= 0;
  }

  pybind11::object thread_keys_, raw_repr_, is_function_mode_, is_profiling_, is_grad_enabled_;
  pybind11::object forward_mode_;
  PyObject* level_;
  bool complete_ = false;
};

}  // namespace bdk
