// The threads of a launch on the CPU: fibers, of which one runs at a time, in turns. All blocks of
// a cluster run together.
//
// Three adversaries, drawn from the seed of a launch, look for what a kernel may not rely on:
// * the order of the threads, another one in every turn;
// * relaxed stores that others see late, out of order and in parts, until a fence of the storing
//   thread, or of one that a barrier has ordered after it;
// * blocks and warps that sleep for a while, so that others are far ahead of them.
// An earlier kernel of the chain ends only when no thread can go on without it.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace emulated {

struct Adversaries {
  bool late_stores = true;
  bool sleeping = true;
};
inline Adversaries adversaries;
constexpr uint32_t kLatest = 4096;    // turns that a store is late, or a block sleeps, at most
constexpr uint32_t kWarpSleep = 128;  // turns that a warp sleeps, at most
inline int64_t max_turns = 1000000;   // after these a launch counts as hung

// A barrier for `count` threads, those from `first` on.
struct Barrier {
  int count = 0, first = 0, arrived = 0, generation = 0;
};

struct Thread {
  void* stack_pointer = nullptr;
  const int* watched = nullptr;  // the thread rests while *watched is `seen`
  int seen = 0;
  bool done = false;
  int exchanges = 0;
  int cluster_generation = 0;
  int looks = 0, looked_at = 0;  // relaxed loads since a store became visible
  int votes = 0;
};

// A store that only the threads from `first` to `end` see, until turn `due`.
struct Store {
  void* at;
  unsigned char value[16];
  size_t size;
  int64_t due;
  int first, end;
};

struct Block {
  std::vector<uint4> shared;
  std::vector<Store> late;
  Barrier all;
  bool begun = false;
  int64_t wakes = 0;       // the turn until which the block sleeps
  int64_t warp_wakes = 0;  // and one of its warps
  int sleeping_warp = 0;
  int left = 0;  // threads that have not ended
  int votes[3];  // of three __syncthreads_or in a row
};

// Memory that an earlier kernel of the chain writes. It holds NaN until that kernel has ended.
struct LateInput {
  void* memory;
  size_t bytes;
  std::vector<unsigned char> content;
};
inline std::vector<LateInput> late_inputs;  // of the next launch

inline void late_input(const void* memory, size_t bytes) {
  if (memory != nullptr) late_inputs.push_back({const_cast<void*>(memory), bytes, {}});
}

struct Machine {
  std::vector<Thread> threads;
  std::vector<Block> blocks;  // of the cluster that runs
  std::vector<Barrier> warps;
  Barrier cluster;
  int running = 0;
  int block_threads = 1, first_block = 0;
  int visible = 0;         // number of stores that all threads see
  int vain = 0;            // times that polling threads were woken since a thread stored something
  int previous_ended = 0;  // whether the earlier kernel has
  int64_t turn = 0;
  int64_t naps = 0;  // the turn in which some blocks fall asleep
  uint32_t random = 1;
  bool disturbed = false;  // by the adversaries
  const char* fault = nullptr;
  void* scheduler = nullptr;
  std::unique_ptr<char[], void (*)(void*)> stacks{nullptr, std::free};
  size_t stack_count = 0;
  std::function<void()> kernel;
};
inline Machine machine;
constexpr size_t kPage = 1 << 21;  // so that stacks of thousands of threads need few translations

inline Thread& thread() { return machine.threads[machine.running]; }
inline int block_of_cluster() { return machine.running / machine.block_threads; }
inline Block& block() { return machine.blocks[block_of_cluster()]; }
inline int warp() { return machine.running / 32; }  // of the cluster
inline int lane() { return machine.running % 32; }

inline uint32_t random_below(uint32_t end) {
  machine.random ^= machine.random << 13;
  machine.random ^= machine.random >> 17;
  machine.random ^= machine.random << 5;
  return machine.random % end;
}

// Annotations for the sanitizer: which thread runs from here on, and what happens before what.
#ifdef __SANITIZE_THREAD__
inline void* scheduler_thread;
inline std::vector<void*> sanitized;

inline void begin_threads(size_t count) {
  scheduler_thread = __tsan_get_current_fiber();
  for (void* thread : sanitized) __tsan_destroy_fiber(thread);
  sanitized.assign(count, nullptr);
  for (void*& thread : sanitized) thread = __tsan_create_fiber(0);
}
// Not instrumented: another thread leaves such a function than entered it.
#define NOT_INSTRUMENTED __attribute__((no_sanitize("thread")))
NOT_INSTRUMENTED inline void run_as_thread(int i) {
  __tsan_switch_to_fiber(sanitized[i], __tsan_switch_to_fiber_no_sync);
}
NOT_INSTRUMENTED inline void run_as_scheduler() {
  __tsan_switch_to_fiber(scheduler_thread, __tsan_switch_to_fiber_no_sync);
}
inline void before(void* event) { __tsan_release(event); }
inline void after(void* event) { __tsan_acquire(event); }
constexpr size_t kStack = 1 << 18;  // the reports need space
#else
#define NOT_INSTRUMENTED
inline void begin_threads(size_t) {}
inline void run_as_thread(int) {}
inline void run_as_scheduler() {}
inline void before(void*) {}
inline void after(void*) {}
constexpr size_t kStack = (1 << 14) + 192;  // no power of two: the tops take different cache lines
#endif

// Saves the registers that a call keeps on this stack, its pointer in *from, and goes on on `to`.
// swapcontext asks the kernel for the signal mask, which takes most of the time of a switch.
__attribute__((naked, noinline)) NOT_INSTRUMENTED inline void switch_stack(void** /*from*/,
                                                                           void* /*to*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

// Ends this thread's turn. It rests while *watched is `seen`.
inline void yield(const int* watched = nullptr, int seen = 0) {
  thread().watched = watched;
  thread().seen = seen;
  run_as_scheduler();
  switch_stack(&thread().stack_pointer, machine.scheduler);
}

inline int arrive(Barrier& barrier) {
  const int generation = barrier.generation;
  if (++barrier.arrived == barrier.count) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  return generation;
}

inline void wait(const Barrier& barrier, int generation) {
  if (barrier.generation == generation) yield(&barrier.generation, generation);
}

inline void meet(Barrier& barrier) { wait(barrier, arrive(barrier)); }

// Every lane gives a value and gets those of its warp. Two exchanges in a row take two buffers, so
// that a lane may be ahead by one.
template <class T, class Read>
auto exchange(const T& value, Read read) {
  static std::vector<std::array<T, 32>> given;
  const size_t at = 2 * warp() + thread().exchanges++ % 2;
  if (given.size() < 2 * machine.warps.size()) given.resize(2 * machine.warps.size());
  given[at][lane()] = value;
  meet(machine.warps[warp()]);
  const std::array<T, 32> seen = given[at];
  return read(seen);
}

// Stores that others see late.

inline bool sees(const Store& store) {
  return store.first <= machine.running && machine.running < store.end;
}

// Makes the stores of a block visible to all threads, those for which `chosen` is true.
template <class Chosen>
void show(Block& of, Chosen chosen) {
  size_t kept = 0;
  for (size_t i = 0; i < of.late.size(); ++i) {
    if (chosen(of.late[i])) {
      memcpy(of.late[i].at, of.late[i].value, of.late[i].size);
      ++machine.visible;
    } else {
      of.late[kept++] = of.late[i];
    }
  }
  of.late.resize(kept);
}

inline bool overlaps(const Store& store, const void* at, size_t size) {
  const auto from = reinterpret_cast<uintptr_t>(at), other = reinterpret_cast<uintptr_t>(store.at);
  return other < from + size && from < other + store.size;
}

// One in four stores falls into parts of 4 bytes that are late each by itself.
inline void store_late(void* at, const void* value, size_t size) {
  machine.vain = 0;
  const auto older = [&](const Store& store) { return overlaps(store, at, size) && sees(store); };
  show(block(), older);  // one address stays in order
  if (!machine.disturbed || !adversaries.late_stores) {
    memcpy(at, value, size);
    ++machine.visible;
    return;
  }
  const size_t part = random_below(4) == 0 ? 4 : size;
  for (size_t i = 0; i < size; i += part) {
    // At least d turns with probability 1 / d: among any number of stores some are very late.
    const uint32_t delay = kLatest / (1 + random_below(kLatest));
    const int self = machine.running;
    Store store{static_cast<char*>(at) + i, {}, part, machine.turn + delay, self, self + 1};
    memcpy(store.value, static_cast<const char*>(value) + i, part);
    block().late.push_back(store);
  }
}

inline void load_late(void* value, const void* at, size_t size) {
  // A thread that has looked this often while no store became visible polls: it rests for one.
  constexpr int kLooks = 32;
  Thread& self = thread();
  if (self.looked_at != machine.visible) self.looks = 0;
  self.looked_at = machine.visible;
  self.looks++ < kLooks ? yield() : yield(&machine.visible, machine.visible);
  memcpy(value, at, size);
  for (const Store& store : block().late) {
    if (!overlaps(store, at, size) || !sees(store)) continue;
    const auto offset = static_cast<char*>(store.at) - static_cast<const char*>(at);
    memcpy(static_cast<char*>(value) + offset, store.value, store.size);
  }
}

inline void fence() { show(block(), sees); }

// A barrier that orders memory: everything before it, in any thread, happens before everything
// after.
inline void order(Barrier& barrier) {
  const int end = barrier.first + barrier.count;
  before(&barrier);
  const int generation = arrive(barrier);
  if (barrier.generation != generation) {  // the last one
    for (int b = barrier.first / machine.block_threads; b * machine.block_threads < end; ++b) {
      for (Store& store : machine.blocks[b].late) {
        if (barrier.first > store.first || store.end > end) continue;
        store.first = barrier.first;
        store.end = end;
      }
      if (&barrier == &machine.cluster) show(machine.blocks[b], [](const Store&) { return true; });
    }
  }
  wait(barrier, generation);
#ifdef __SANITIZE_THREAD__
  after(&barrier);
  meet(barrier);  // so that no fiber reaches the next barrier before all have left this one
#endif
}

inline void wait_for_previous() {
  if (!machine.previous_ended) yield(&machine.previous_ended, 0);
}

// Where `shared`, an address in this block's shared memory, lies in that of another block.
inline void* at_block(void* shared, uint32_t rank) {
  const auto from = reinterpret_cast<unsigned char*>(block().shared.data());
  Block& other = machine.blocks[rank];
  if (other.left == 0) machine.fault = "a store to the shared memory of a block that has ended";
  return reinterpret_cast<unsigned char*>(other.shared.data()) +
         (static_cast<unsigned char*>(shared) - from);
}

NOT_INSTRUMENTED inline void run_fiber() {
  after(&block());  // its memory is filled
  machine.kernel();
  thread().done = true;
  --block().left;
  before(&machine);  // before the next block
  run_as_scheduler();
  switch_stack(&thread().stack_pointer, machine.scheduler);
}

// A block begins with its first thread: what others have written to its shared memory is lost.
inline void resume(int i) {
  machine.running = i;
  if (!block().begun) {
    block().begun = true;
    memset(block().shared.data(), 0xFF, block().shared.size() * sizeof(uint4));
    before(&block());
  }
  run_as_thread(i);
  switch_stack(&machine.scheduler, machine.threads[i].stack_pointer);
}

inline void end_previous() {
  for (const LateInput& input : late_inputs) {
    memcpy(input.memory, input.content.data(), input.bytes);
  }
  machine.previous_ended = 1;
}

// Whether a thread could go on, but for sleep.
inline bool is_ready(const Thread& thread) {
  return !thread.done && (thread.watched == nullptr || *thread.watched != thread.seen);
}

// Whether there is something that lets a thread go on when all rest.
inline bool wake() {
  if (!machine.previous_ended) return end_previous(), true;
  int64_t next = INT64_MAX;  // turn in which something happens by itself
  for (const Block& block : machine.blocks) {
    for (const Store& store : block.late) next = std::min(next, store.due);
    if (block.wakes > machine.turn) next = std::min(next, block.wakes);
    const auto warp = machine.threads.begin() + block.all.first + 32 * block.sleeping_warp;
    const bool sleeps = block.warp_wakes > machine.turn && std::any_of(warp, warp + 32, is_ready);
    if (sleeps) next = std::min(next, block.warp_wakes);
  }
  if (next != INT64_MAX) {
    machine.turn = std::max(machine.turn, next - 1);
    return true;
  }
  constexpr int kVain = 64;
  ++machine.visible;  // those that poll count their looks
  return ++machine.vain <= kVain &&
         std::any_of(machine.threads.begin(), machine.threads.end(), [](const Thread& thread) {
           return !thread.done && thread.watched == &machine.visible;
         });
}

inline void disturb() {
  const bool naps = machine.turn >= machine.naps && machine.blocks.size() > 1;
  if (naps) machine.naps = machine.turn + 40;
  for (Block& block : machine.blocks) {
    show(block, [](const Store& store) { return store.due <= machine.turn; });
    if (!naps || !adversaries.sleeping || block.wakes > machine.turn) continue;
    if (random_below(4) == 0) block.wakes = machine.turn + kLatest / (1 + random_below(128));
    block.sleeping_warp = static_cast<int>(random_below(machine.block_threads / 32));
    block.warp_wakes = machine.turn + random_below(kWarpSleep);
  }
}

// Runs the threads until all have ended: a message if they never do.
inline const char* run_threads(bool backward) {
  const auto add_ready = [](const Block& block, std::vector<int>& order) {
    if (block.left == 0 || block.wakes > machine.turn) return;
    const int first = block.all.first;
    const int asleep = block.warp_wakes > machine.turn ? block.sleeping_warp : -1;
    for (int i = 0; i < machine.block_threads; ++i) {
      if (i / 32 != asleep && is_ready(machine.threads[first + i])) order.push_back(first + i);
    }
  };
  std::vector<int> order;
  for (int64_t turns = 0; turns <= max_turns; ++turns, ++machine.turn) {
    if (machine.disturbed) disturb();
    order.clear();
    for (const Block& block : machine.blocks) add_ready(block, order);
    if (machine.disturbed) {
      for (size_t i = order.size(); i > 1; --i) {
        std::swap(order[i - 1], order[random_below(static_cast<uint32_t>(i))]);
      }
    } else if (backward) {
      std::reverse(order.begin(), order.end());
    }
    for (int i : order) resume(i);
    if (machine.fault != nullptr) return machine.fault;
    if (!order.empty()) continue;
    const auto left = [](const Block& block) { return block.left > 0; };
    if (std::none_of(machine.blocks.begin(), machine.blocks.end(), left)) return nullptr;
    if (!wake()) return "hung";
  }
  return "hung";
}

// The word at the end of a thread's stack.
constexpr uint64_t kUntouched = 0x0123456789ABCDEF;
inline uint64_t* last_word(int t) {
  return reinterpret_cast<uint64_t*>(machine.stacks.get() + t * kStack);
}

// Runs the blocks of one cluster, or one block.
inline const char* run_cluster(int first, int cluster, int threads, size_t shared_bytes,
                               bool backward) {
  const int all = cluster * threads;
  machine.first_block = first;
  machine.block_threads = threads;
  machine.previous_ended = late_inputs.empty();
  machine.fault = nullptr;
  machine.vain = 0;
  machine.naps = 0;
  machine.threads.assign(all, {});
  machine.warps.resize(all / 32);
  for (int w = 0; w < all / 32; ++w) machine.warps[w] = {32, 32 * w, 0, 0};
  machine.cluster = {all, 0, 0, 0};
  machine.blocks.resize(cluster);
  for (int b = 0; b < cluster; ++b) {
    Block& block = machine.blocks[b];
    block.shared.resize(shared_bytes / sizeof(uint4) + 1);
    block.late.clear();
    block.all = {threads, b * threads, 0, 0};
    block.begun = false;
    block.wakes = block.warp_wakes = 0;
    block.left = threads;
    std::fill(block.votes, block.votes + 3, 0);
  }
  if (machine.stack_count < machine.threads.size()) {
    machine.stack_count = machine.threads.size();
    const size_t bytes = (machine.stack_count * kStack + kPage - 1) / kPage * kPage;
    machine.stacks.reset(static_cast<char*>(std::aligned_alloc(kPage, bytes)));
    if (kStack < kPage / 64) madvise(machine.stacks.get(), bytes, MADV_HUGEPAGE);
  }
  begin_threads(machine.threads.size());
  for (int t = 0; t < all; ++t) {
    const uintptr_t end = reinterpret_cast<uintptr_t>(machine.stacks.get()) + (t + 1) * kStack;
    void** top = reinterpret_cast<void**>(end & ~uintptr_t{15}) - 8;
    std::fill(top, top + 8, nullptr);  // six registers, the address to go on at, none to return to
    top[6] = reinterpret_cast<void*>(run_fiber);
    machine.threads[t].stack_pointer = top;
    *last_word(t) = kUntouched;
  }
  for (LateInput& input : late_inputs) {
    const auto bytes = static_cast<unsigned char*>(input.memory);
    input.content.assign(bytes, bytes + input.bytes);
    memset(bytes, 0xFF, input.bytes);
  }
  const char* message = run_threads(backward);
  for (Block& block : machine.blocks) show(block, [](const Store&) { return true; });
  if (!machine.previous_ended) end_previous();
  after(&machine);
  for (int t = 0; t < all; ++t) {
    if (*last_word(t) != kUntouched) return "a thread needs a larger stack";
  }
  return message;
}

}  // namespace emulated
