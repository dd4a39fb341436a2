// One pool of threads for all kernels.
//
// Our own and not OpenMP: torch ships a private libgomp, ours would be a second one with a second
// set of threads, and libgomp cannot be used in a child after fork(). The threads here sleep
// between jobs, so they never take a core from torch's; they are started when first needed, and
// a forked child starts its own.
#pragma once

#include <cstdint>
#include <type_traits>

namespace tesseral {

// Calls task(context, index, worker) once for every index in [0, n_tasks), on the calling thread
// and at most n_threads - 1 others, and returns when all are done. `worker` is in [0, n_threads)
// and belongs to one thread for the whole call. Indices are handed out one by one, in order. The
// task must not throw. A call made while another thread's job has the pool runs on the calling
// thread.
void parallel_for(std::int64_t n_tasks, int n_threads,
                  void (*task)(void* context, std::int64_t index, int worker), void* context);

// The same for a callable of (index, worker).
template <class Task>
void parallel_for(std::int64_t n_tasks, int n_threads, Task&& task) {
  const auto call = [](void* context, std::int64_t index, int worker) {
    (*static_cast<std::remove_reference_t<Task>*>(context))(index, worker);
  };
  parallel_for(n_tasks, n_threads, call, &task);
}

}  // namespace tesseral
