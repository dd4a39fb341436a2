// The threads of all kernels: torch's, where it is in use, and else a pool of our own.
//
// The kernels are not linked with OpenMP: torch ships a private libgomp, ours would be a second one
// with a second set of threads. Torch's threads spin for a while after each of its operations, so
// that others' would have to wait for a core; in turn they start on a job at once. A child after
// fork() has neither: libgomp cannot be used there, and our pool starts anew. Our own threads sleep
// between jobs; they are started when first needed.
#pragma once

#include <cstdint>
#include <type_traits>

namespace tesseral {

// Lets all later jobs run on the threads of an OpenMP library that is loaded under this file name;
// returns whether that can be.
bool share_openmp(const char* library);

// Calls task(context, index, worker) once for every index in [0, n_tasks), on the calling thread
// and at most n_threads - 1 others, and returns when all are done. `worker` is in [0, n_threads)
// and belongs to one thread for the whole call. Indices are handed out one by one, in order. The
// task must not throw. A call made while another thread's job has our pool runs on the calling
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
