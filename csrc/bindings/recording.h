// Records calls of C functions, to replay them without Python.
#pragma once

#include <functional>
#include <utility>
#include <vector>

namespace bdk {

// A call with its arguments; it raises as it did the first time.
using RecordedCall = std::function<void()>;

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
inline Recording take_recording() {
  std::vector<RecordedCall> taken;
  if (recorded_calls() != nullptr) taken.swap(*recorded_calls());
  return Recording(std::move(taken));
}

inline void stop_recording() {
  delete recorded_calls();
  recorded_calls() = nullptr;
}

}  // namespace bdk
