// SPDX-License-Identifier: MIT
#include "pool.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tokenspeed::cpu {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  void* at_least(std::size_t bytes) {
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = (bytes + bytes / 4 + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(4096, bytes_);
      if (data_ == nullptr) {
        bytes_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

//  state:  | job number (48 bits) | open (1 bit) | workers inside (15 bits) |
constexpr std::uint64_t inside_mask = (1u << 15) - 1;
constexpr std::uint64_t open_bit = 1u << 15;
constexpr std::uint64_t job_unit = 1u << 16;

class Pool {
 public:
  ~Pool() { stop(); }

  void start(int threads, int spin_us) {
    stop();
    spin_ = std::chrono::microseconds(spin_us);
    scratch_ = std::vector<Scratch>(static_cast<std::size_t>(threads));
    stopping_.store(false);
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  void stop() {
    stopping_.store(true);
    state_.fetch_add(job_unit);
    state_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(std::int64_t tasks, Task task, const void* context) {
    if (tasks <= 1 || workers_.empty()) {
      for (std::int64_t i = 0; i < tasks; ++i) task(context, i, 0);
      return;
    }
    task_ = task;
    context_ = context;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    state_.fetch_add(job_unit | open_bit);
    if (parked_.load() > 0) state_.notify_all();
    take(0);
    state_.fetch_and(~open_bit);
    while ((state_.load(std::memory_order_acquire) & inside_mask) != 0) relax();
  }

  void* scratch(int thread, std::size_t bytes) { return scratch_[static_cast<std::size_t>(thread)].at_least(bytes); }
  void* shared(std::size_t bytes) { return shared_.at_least(bytes); }
  std::mutex& mutex() { return mutex_; }

 private:
  void take(int thread) {
    for (std::int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) task_(context_, i, thread);
  }

  void work(int thread) {
    std::uint64_t seen = state_.load() / job_unit;
    while (!stopping_.load(std::memory_order_relaxed)) {
      std::uint64_t state = await_job_after(seen);
      seen = state / job_unit;
      while ((state & open_bit) != 0 && state / job_unit == seen) {
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
        take(thread);
        state_.fetch_sub(1, std::memory_order_acq_rel);
        break;
      }
    }
  }

  std::uint64_t await_job_after(std::uint64_t seen) {
    const auto deadline = std::chrono::steady_clock::now() + spin_;
    do {
      for (int i = 0; i < 64; ++i) {
        const std::uint64_t state = state_.load(std::memory_order_acquire);
        if (state / job_unit != seen) return state;
        relax();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    parked_.fetch_add(1);
    std::uint64_t state = state_.load();
    while (state / job_unit == seen) {
      state_.wait(state);
      state = state_.load();
    }
    parked_.fetch_sub(1);
    return state;
  }

  alignas(64) std::atomic<std::uint64_t> state_{0};
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<int> parked_{0};
  std::atomic<bool> stopping_{false};
  Task task_ = nullptr;
  const void* context_ = nullptr;
  std::int64_t tasks_ = 0;
  std::chrono::microseconds spin_{0};
  std::vector<std::thread> workers_;
  std::vector<Scratch> scratch_ = std::vector<Scratch>(1);
  Scratch shared_;
  std::mutex mutex_;
};

Pool& pool() {  // threads are a resource of the process, hence the one instance
  static Pool instance;
  return instance;
}

}  // namespace

void set_threads(int threads, int spin_us) { pool().start(threads, spin_us); }
int threads() { return pool().size(); }
void stop_threads() { pool().stop(); }
void parallel(std::int64_t tasks, Task task, const void* context) { pool().run(tasks, task, context); }
void* thread_scratch(int thread, std::size_t bytes) { return pool().scratch(thread, bytes); }
void* shared_scratch(std::size_t bytes) { return pool().shared(bytes); }
Busy::Busy() { pool().mutex().lock(); }
Busy::~Busy() { pool().mutex().unlock(); }

}  // namespace tokenspeed::cpu
