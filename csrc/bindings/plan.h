// A call like one before, without Python: results of the same shapes are made and given to the same
// C function.
#pragma once

#include <memory>
#include <vector>

#include "recording.h"
#include "tensors.h"

namespace bdk {

// What a run of a backend has done that calls one C function, for calls with the same key: they
// have arguments of the same shapes, strides and dtypes and the same numbers.
class Plan {
 public:
  // Null if the run has done more than to fill its results by one recorded call.
  // arguments: those of the op, the backend last; max_bytes: of a result.
  static std::unique_ptr<Plan> make(const std::vector<RecordedCall>& calls,
                                    pybind11::handle arguments, pybind11::handle results,
                                    pybind11::handle run, int64_t max_bytes) {
    auto plan = std::make_unique<Plan>();
    std::vector<void*> found;  // the memory of every tensor
    const Py_ssize_t count = PyTuple_GET_SIZE(arguments.ptr()) - 1;
    for (Py_ssize_t i = 0; i < count; ++i) {
      dlpack::Tensor tensor;
      found.push_back(nullptr);
      PyObject* argument = PyTuple_GET_ITEM(arguments.ptr(), i);
      if (plan->pytorch_.is_plain_tensor(argument)) {
        if (!plan->pytorch_.borrow(argument, &tensor)) return nullptr;
        found.back() = tensor.data;
      }
    }
    plan->several_ = PyTuple_CheckExact(results.ptr());
    const auto several = plan->several_ ? pybind11::reinterpret_borrow<pybind11::tuple>(results)
                                        : pybind11::make_tuple(results);
    for (const pybind11::handle result : several) {
      dlpack::Tensor tensor;
      if (!plan->pytorch_.is_plain_tensor(result.ptr()) ||
          !plan->pytorch_.borrow(result.ptr(), &tensor) || !plan->add(result, tensor, max_bytes)) {
        return nullptr;
      }
      found.push_back(tensor.data);
    }
    if (calls.size() != 1) return nullptr;
    std::vector<int> used(found.size());
    for (void* pointer : calls[0].pointers) {
      plan->sources_.push_back(-1);
      if (pointer == nullptr) continue;
      for (size_t i = 0; i < found.size(); ++i) {
        if (found[i] != pointer) continue;
        if (plan->sources_.back() >= 0) return nullptr;  // one of two in the same memory
        plan->sources_.back() = static_cast<int>(i);
        used[i] = 1;
      }
      if (plan->sources_.back() < 0) return nullptr;  // memory of neither
    }
    for (size_t i = static_cast<size_t>(count); i < found.size(); ++i) {
      if (!used[i]) return nullptr;
    }
    plan->function_ = calls[0].function;
    plan->inputs_ = static_cast<int>(count);
    plan->run_ = pybind11::reinterpret_borrow<pybind11::object>(run);
    plan->threads_ = plan->threads();
    return plan;
  }

  pybind11::object operator()(PyObject* arguments) const {
    constexpr size_t kMax = 16;
    void* pointers[kMax];
    pybind11::object results[kMax];
    bool known = sources_.size() <= kMax && results_.size() <= kMax && threads() == threads_;
    for (size_t i = 0; known && i < results_.size(); ++i) {
      results[i] = own(PyObject_CallOneArg(empty_like_.ptr(), results_[i].ptr()));
    }
    for (size_t i = 0; known && i < sources_.size(); ++i) {
      const int from = sources_[i];
      pointers[i] = nullptr;
      if (from < 0) continue;
      PyObject* tensor =
          from < inputs_ ? PyTuple_GET_ITEM(arguments, from) : results[from - inputs_].ptr();
      dlpack::Tensor memory;
      known = pytorch_.borrow(tensor, &memory);
      if (known) pointers[i] = memory.data;
    }
    if (known) {
      const pybind11::gil_scoped_release release;
      known = function_(pointers) == BDK_OK;
    }
    if (!known) return own(PyObject_CallOneArg(run_.ptr(), arguments));
    if (!several_) return results[0];
    pybind11::tuple tuple(results_.size());
    for (size_t i = 0; i < results_.size(); ++i) tuple[i] = results[i];
    return std::move(tuple);
  }

 private:
  static pybind11::object own(PyObject* object) {
    if (object == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(object);
  }

  long threads() const {
    return PyLong_AsLong(own(PyObject_CallNoArgs(get_num_threads_.ptr())).ptr());
  }

  // False unless the result is contiguous and has a storage of its own.
  bool add(pybind11::handle tensor, const dlpack::Tensor& memory, int64_t max_bytes) {
    const int64_t item = memory.dtype.bits / 8 * memory.dtype.lanes;
    const int64_t elements = contiguous_elements(memory);
    if (memory.dims == 0 || elements == 0 || elements * item >= max_bytes ||
        memory.device.type != dlpack::kCpu || pytorch_.requires_grad(tensor.ptr()) ||
        pytorch_.storage_ends_at(tensor.ptr(), item) != elements) {
      return false;
    }
    // Of one element, so that a plan takes no memory.
    const pybind11::object like = tensor.attr("new_empty")(1).attr("expand")(tensor.attr("shape"));
    const pybind11::object made = empty_like_(like);
    dlpack::Tensor check;
    results_.push_back(like);
    return pytorch_.borrow(made.ptr(), &check) && contiguous_elements(check) == elements;
  }

  // 0 if the elements of the tensor are not adjacent and in order.
  static int64_t contiguous_elements(const dlpack::Tensor& tensor) {
    int64_t elements = 1;
    for (int i = tensor.dims - 1; i >= 0; --i) {
      if (tensor.shape[i] != 1 && tensor.strides[i] != elements) return 0;
      elements *= tensor.shape[i];
    }
    return elements;
  }

  const Pytorch& pytorch_ = Pytorch::get();
  pybind11::object empty_like_ = pybind11::module_::import("torch").attr("empty_like");
  pybind11::object get_num_threads_ = pybind11::module_::import("torch").attr("get_num_threads");
  std::function<int(void* const*)> function_;
  std::vector<int> sources_;  // of each pointer: an argument, then a result; -1 for null
  // Of the shapes, dtypes and devices of the results: torch.empty takes half as long again to read
  // them from its arguments as torch.empty_like does from a tensor.
  std::vector<pybind11::object> results_;
  int inputs_ = 0;
  bool several_ = false;
  long threads_ = 0;
  pybind11::object run_;  // for what goes another way
};

constexpr const char* kPlan = "bitdance_kernels.plan";

inline PyObject* call_plan(PyObject* capsule, PyObject* arguments) {
  try {
    const auto* plan = static_cast<const Plan*>(PyCapsule_GetPointer(capsule, kPlan));
    return (*plan)(arguments).release().ptr();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// planned(run, arguments, max_bytes): the results of run(arguments), and a function that takes
// arguments with the same key and does the same without Python, or None.
inline pybind11::object planned(PyObject* const* given, Py_ssize_t count) {
  if (count != 3 || !PyTuple_Check(given[1]) || PyTuple_GET_SIZE(given[1]) == 0) {
    throw pybind11::type_error("planned(run, arguments: tuple, max_bytes: int)");
  }
  const bool recording = recorded_calls() == nullptr;  // and not a capture that goes on
  if (recording) start_recording();
  const auto results =
      pybind11::reinterpret_steal<pybind11::object>(PyObject_CallOneArg(given[0], given[1]));
  std::vector<RecordedCall> calls;
  if (recording) {
    calls = take_calls();
    stop_recording();
  }
  if (!results) throw pybind11::error_already_set();
  auto plan = Plan::make(calls, given[1], results, given[0], PyLong_AsLongLong(given[2]));
  if (plan == nullptr) return pybind11::make_tuple(results, pybind11::none());
  static PyMethodDef method = {"plan", &call_plan, METH_O, nullptr};
  const pybind11::capsule capsule(plan.release(), kPlan, [](PyObject* object) {
    delete static_cast<Plan*>(PyCapsule_GetPointer(object, kPlan));
  });
  return pybind11::make_tuple(results, pybind11::reinterpret_steal<pybind11::object>(
                                           PyCFunction_New(&method, capsule.ptr())));
}

}  // namespace bdk
