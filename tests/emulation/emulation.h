// A GPU of one block at a time, for running kernels in tests on a machine without one.
//
// Each thread of a block is a fiber, which runs until it has to wait for others: at a barrier or in a warp
// instruction. Who goes on then is drawn at random, from the warp that ran last as long as it can go on, so
// that warps get far ahead of each other and a barrier that is missing shows as a wrong result. Shared memory
// starts as garbage and ends at a fence. Blocks run one after another, in a random order. What a GPU would
// hang on or leave undefined is a std::logic_error.
//
// It knows nothing of memory that is weakly ordered, nor of speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

#define SHFCAS_LAUNCH(kernel, grid, block, shared, stream) emulation::bind(grid, block, kernel, stream)
#define SHFCAS_SHARED(Type, name, count) \
  static char name##_tag;                \
  Type* const name = static_cast<Type*>(emulation::gpu().shared(&name##_tag, sizeof(Type) * (count)))

#define SHFCAS_MOST_BLOCKS 3
#define SHFCAS_KEYS_AT_ONCE 7000
#define SHFCAS_LEAST_BY_RADIX 5000
#define SHFCAS_WORDS_AT_ONCE 2000

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;
using cudaStream_t = void*;

namespace emulation {

enum class State { ready, at_barrier, in_warp, done };
enum class Exchange { none, shuffle, ballot };

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  State state;
  Exchange exchange;
  unsigned mask, source;
  uint64_t value, result;
};

class Gpu {
 public:
  void seed(unsigned seed) { random_.seed(seed); }

  template <class Kernel>
  void run(unsigned grid, unsigned block, const Kernel& kernel) {
    entry_ = [](void* k) { (*static_cast<const Kernel*>(k))(); };
    kernel_ = const_cast<Kernel*>(&kernel);
    if (grid == 0) throw std::logic_error("a launch of no blocks");
    gridDim.x = grid;
    std::vector<unsigned> order(grid);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (const unsigned index : order) run_block(index, block);
  }

  void* shared(const void* tag, size_t size) {
    auto& memory = shared_[tag];
    if (memory.empty()) memory.assign(size + kFence, kGarbage);
    return memory.data();
  }

  int barrier(int flag) {
    self().value = flag != 0;
    wait(State::at_barrier);
    return static_cast<int>(self().result);
  }

  // A warp instruction, over as soon as the last lane of the mask has come to it.
  uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, unsigned source) {
    Thread& me = self();
    const unsigned first = current_ / 32 * 32, lane = current_ % 32;
    if (!(mask >> lane & 1)) throw_later("a lane outside the mask of its own warp instruction");
    me.exchange = kind, me.mask = mask, me.value = value, me.source = source;
    me.state = State::in_warp;
    bool complete = true;
    uint64_t ballot = 0;
    for (unsigned l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      const bool here = first + l < threads_.size() && other(first + l).state == State::in_warp &&
                        other(first + l).mask == mask && other(first + l).exchange == kind;
      complete = complete && here;
      if (here) ballot |= (other(first + l).value & 1) << l;
    }
    if (complete)
      for (unsigned l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        Thread& thread = other(first + l);
        const bool inside = mask >> (thread.source % 32) & 1;
        thread.result = kind == Exchange::ballot ? ballot
                        : inside                 ? other(first + thread.source % 32).value
                                                 : kPoison;
      }
    if (complete)
      for (unsigned l = 0; l < 32; ++l)
        if (mask >> l & 1) other(first + l).state = State::ready;
    swapcontext(&me.context, &scheduler_);
    return me.result;
  }

 private:
  static constexpr size_t kFence = 64;
  static constexpr char kGarbage = static_cast<char>(0xa5);
  static constexpr uint64_t kPoison = 0xa5a5a5a5a5a5a5a5;

  Thread& other(unsigned index) { return *threads_[index]; }
  Thread& self() { return *threads_[current_]; }

  void wait(State state) {
    self().state = state;
    swapcontext(&self().context, &scheduler_);
  }

  void throw_later(const char* what) {  // exceptions do not cross fibers
    error_ = what;
    wait(State::done);
  }

  static void start() {
    Gpu& gpu = instance();
    gpu.entry_(gpu.kernel_);
    gpu.wait(State::done);
  }

  void run_block(unsigned index, unsigned size) {
    blockIdx.x = index;
    error_.clear();
    for (auto& [tag, memory] : shared_) std::fill(memory.begin(), memory.end(), kGarbage);
    if (size % 32 != 0) throw std::logic_error("a block that is not made of whole warps");
    while (threads_.size() < size) threads_.push_back(std::make_unique<Thread>());
    threads_.resize(size);
    for (auto& thread : threads_) {
      getcontext(&thread->context);
      thread->context.uc_stack.ss_sp = thread->stack.data();
      thread->context.uc_stack.ss_size = thread->stack.size();
      thread->context.uc_link = nullptr;
      thread->state = State::ready;
      makecontext(&thread->context, &Gpu::start, 0);
    }
    unsigned warp = 0;
    for (;;) {
      const int next = choose(warp);
      if (next < 0) {
        if (!release_barrier()) break;
        continue;
      }
      current_ = threadIdx.x = static_cast<unsigned>(next);
      warp = current_ / 32;
      swapcontext(&scheduler_, &self().context);
      if (!error_.empty()) throw std::logic_error(error_);
    }
    for (const auto& [tag, memory] : shared_)
      for (size_t i = memory.size() - kFence; i < memory.size(); ++i)
        if (memory[i] != kGarbage) throw std::logic_error("a write past shared memory");
  }

  // A ready thread: of the same warp mostly, else of any. -1 if there is none.
  int choose(unsigned warp) {
    const unsigned warps = static_cast<unsigned>(threads_.size() / 32), draw = random_();
    const unsigned start = draw % 16 == 0 ? warp + 1 + draw / 16 % warps : warp;
    for (unsigned w = 0; w < warps; ++w)
      for (unsigned l = 0; l < 32; ++l) {
        const unsigned index = (start + w) % warps * 32 + (draw / 1024 + l) % 32;
        if (other(index).state == State::ready) return static_cast<int>(index);
      }
    return -1;
  }

  // Whether there was anybody to release. Nobody runs when this is asked.
  bool release_barrier() {
    size_t waiting = 0, done = 0;
    uint64_t any = 0;
    for (auto& thread : threads_) {
      waiting += thread->state == State::at_barrier;
      done += thread->state == State::done;
      any |= thread->state == State::at_barrier && thread->value;
    }
    if (done == threads_.size()) return false;
    if (waiting != threads_.size())
      throw std::logic_error(done + waiting == threads_.size()
                                 ? "a barrier that some threads never reach"
                                 : "a warp instruction that some lanes never reach");
    for (auto& thread : threads_) thread->result = any, thread->state = State::ready;
    return true;
  }

  static Gpu& instance() {
    static Gpu gpu;
    return gpu;
  }
  friend Gpu& gpu();

  std::minstd_rand random_;
  std::map<const void*, std::vector<char>> shared_;
  std::vector<std::unique_ptr<Thread>> threads_;
  ucontext_t scheduler_;
  unsigned current_ = 0;
  void (*entry_)(void*) = nullptr;
  void* kernel_ = nullptr;
  std::string error_;
};

inline Gpu& gpu() { return Gpu::instance(); }

template <class... Parameters>
struct Bound {
  unsigned grid, block;
  void (*kernel)(Parameters...);
  template <class... Arguments>
  void operator()(const Arguments&... arguments) const {
    gpu().run(grid, block, [&] { kernel(arguments...); });
  }
};

template <class... Parameters>
Bound<Parameters...> bind(unsigned grid, unsigned block, void (*kernel)(Parameters...), cudaStream_t) {
  return {grid, block, kernel};
}

template <class V>
V shuffle(unsigned mask, V value, unsigned source) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(value));
  bits = gpu().exchange(Exchange::shuffle, mask, bits, source);
  memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace emulation

inline void __syncthreads() { emulation::gpu().barrier(0); }
inline int __syncthreads_or(int flag) { return emulation::gpu().barrier(flag); }
inline void __syncwarp(unsigned mask) { emulation::gpu().exchange(emulation::Exchange::none, mask, 0, 0); }
inline unsigned __ballot_sync(unsigned mask, int flag) {
  return static_cast<unsigned>(emulation::gpu().exchange(emulation::Exchange::ballot, mask, flag != 0, 0));
}
template <class V>
V __shfl_xor_sync(unsigned mask, V value, int lanes) {
  return emulation::shuffle(mask, value, threadIdx.x % 32 ^ static_cast<unsigned>(lanes));
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <class V>
V atomicAdd(V* address, V value) {
  const V before = *address;
  *address += value;
  return before;
}

// Conversions are exact, or to the nearest with ties to even.
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}
inline __nv_bfloat16 __float2bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

struct __half {
  uint16_t bits;
};
inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return value.bits >> 15 ? -magnitude : magnitude;
}
inline __half __float2half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude != magnitude) return {0x7fff};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x1p-14f) return {static_cast<uint16_t>(sign | std::lrint(std::ldexp(magnitude, 24)))};
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude in [2^(exponent - 1), 2^exponent)
  // A fraction that rounds up to 2048 carries into the exponent, as it should.
  const long fraction = std::lrint(std::ldexp(magnitude, 11 - exponent));
  return {static_cast<uint16_t>(sign | (((exponent + 14) << 10) + (fraction - 1024)))};
}
