// SPDX-License-Identifier: MIT
// Worker threads for kernels: the caller and `threads - 1` workers take tasks off one counter until none is left.
//
// A worker that the operating system has not scheduled delays nobody: it enters a job only while the job is open, and the
// caller waits only for those that entered. Workers spin for `spin_us` after a job (a decode step calls every few
// microseconds), then park. One kernel at a time: hold `Busy` for the whole call; scratch memory is valid while it is held.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokenspeed::cpu {

using Task = void (*)(const void* context, std::int64_t index, int thread);

void set_threads(int threads, int spin_us);  // threads >= 1, counting the caller
int threads();
void stop_threads();  // joins the workers; the next set_threads starts anew
void parallel(std::int64_t tasks, Task task, const void* context);

// Memory of one thread (`thread` in [0, threads)) or of the call as a whole (`shared`): 64-byte aligned, grows, never shrinks.
void* thread_scratch(int thread, std::size_t bytes);
void* shared_scratch(std::size_t bytes);

class Busy {
 public:
  Busy();
  ~Busy();
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;
};

}  // namespace tokenspeed::cpu
