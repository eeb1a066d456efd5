// Records calls of C functions, to replay them without Python.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bitdance_kernels.h"

namespace bdk {

inline void raise(const char* name, int status, const char* (*status_string)(int)) {
  if (status == BDK_BAD_INDEX) {
    throw pybind11::index_error(std::string(name) + ": " + status_string(status));
  }
  throw std::runtime_error(std::string(name) + ": " + status_string(status) + " (status " +
                           std::to_string(status) + ")");
}

// A call with its arguments.
struct RecordedCall {
  const char* name;
  const char* (*status_string)(int);
  std::function<int(void* const*)> function;  // takes the pointers among its arguments, in order
  std::vector<void*> pointers;

  // Raises as it did the first time.
  void operator()() const {
    const int status = function(pointers.data());
    if (status != BDK_OK) raise(name, status, status_string);
  }
};

class Recording {
 public:
  explicit Recording(std::vector<RecordedCall> calls) : calls_(std::move(calls)) {}
  void replay() const {
    for (const RecordedCall& call : calls_) call();
  }
  size_t size() const { return calls_.size(); }

 private:
  std::vector<RecordedCall> calls_;
};

// Calls recorded by this thread; null while nothing is recorded.
inline std::vector<RecordedCall>*& recorded_calls() {
  static thread_local std::vector<RecordedCall>* calls = nullptr;
  return calls;
}

inline void start_recording() {
  if (recorded_calls() == nullptr) recorded_calls() = new std::vector<RecordedCall>();
}

// Calls of this thread since the start or since the last call of this function.
inline std::vector<RecordedCall> take_calls() {
  std::vector<RecordedCall> taken;
  if (recorded_calls() != nullptr) taken.swap(*recorded_calls());
  return taken;
}

inline Recording take_recording() { return Recording(take_calls()); }

inline void stop_recording() {
  delete recorded_calls();
  recorded_calls() = nullptr;
}

}  // namespace bdk
