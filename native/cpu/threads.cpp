#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace tesseral {
namespace {

// One parallel_for; lives on the stack of its caller.
struct Job {
  void (*task)(void*, std::int64_t, int);
  void* context;
  std::int64_t n_tasks;
  std::atomic<std::int64_t> next{0};

  void work(int worker) {
    for (;;) {
      const std::int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= n_tasks) return;
      task(context, index, worker);
    }
  }
};

class Pool {
 public:
  void run(Job& job, int n_threads) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return job.work(0);
    open(job, n_threads - 1);
    job.work(0);
    close();
  }

 private:
  void open(Job& job, int n_helpers) {
    std::lock_guard<std::mutex> lock(mutex_);
    grow(n_helpers);
    job_ = &job;
    places_ = std::min(n_helpers, n_threads_);
    for (int i = 0; i < places_; ++i) wake_.notify_one();
  }

  // A helper that has not woken by now is not waited for: it finds no place left.
  void close() {
    std::unique_lock<std::mutex> lock(mutex_);
    places_ = 0;
    done_.wait(lock, [this] { return n_working_ == 0; });
    job_ = nullptr;
  }

  void grow(int n_helpers) {
    try {
      for (; n_threads_ < n_helpers; ++n_threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // the system refuses more threads: those there are do the work
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return places_ > 0; });
      Job* const job = job_;
      const int worker = places_--;
      ++n_working_;
      lock.unlock();
      job->work(worker);
      lock.lock();
      if (--n_working_ == 0) done_.notify_one();
    }
  }

  std::mutex owner_;  // held by the caller whose job is running
  std::mutex mutex_;  // guards all that follows
  std::condition_variable wake_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  int places_ = 0;  // helpers that may still join the job
  int n_working_ = 0;
  int n_threads_ = 0;
};

// Never deleted: detached threads wait inside it until the process ends. A forked child has none of
// its parent's threads, so it forgets the parent's pool and makes its own.
std::atomic<Pool*> the_pool{nullptr};

// The entry of an OpenMP library, which runs a function on a team of threads; 0 threads stand for
// as many as the library is set to. libgomp defines it, and LLVM's and Intel's libraries have it.
using RunOnTeam = void (*)(void (*function)(void*), void* argument, unsigned n_threads,
                           unsigned flags);
std::atomic<RunOnTeam> the_team{nullptr};

void forget_threads_in_child() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    the_pool.store(nullptr);
    the_team.store(nullptr);
  });
  (void)registered;
}

// A job that a team shares, and how many of the team have come.
struct TeamJob {
  Job& job;
  int n_threads;
  std::atomic<int> workers{0};
};

void run_on(RunOnTeam team, Job& job, int n_threads) {
  TeamJob shared{job, n_threads};
  const auto take_part = [](void* argument) {
    TeamJob& taken = *static_cast<TeamJob*>(argument);
    const int worker = taken.workers.fetch_add(1);
    if (worker < taken.n_threads) taken.job.work(worker);
  };
  // the whole team: libgomp ends the threads that a smaller one leaves out
  team(take_part, &shared, 0, 0);
}

Pool& pool() {
  forget_threads_in_child();
  Pool* current = the_pool.load();
  if (current == nullptr) {
    Pool* const fresh = new Pool;
    if (the_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

bool share_openmp(const char* library) {
  void* const handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return false;
  void* const entry = dlsym(handle, "GOMP_parallel");
  if (entry == nullptr) return false;
  forget_threads_in_child();
  the_team.store(reinterpret_cast<RunOnTeam>(entry));
  return true;
}

void parallel_for(std::int64_t n_tasks, int n_threads, void (*task)(void*, std::int64_t, int),
                  void* context) {
  Job job{task, context, n_tasks};
  const auto wanted = static_cast<int>(std::min<std::int64_t>(n_tasks, n_threads));
  if (wanted <= 1) return job.work(0);
  if (const RunOnTeam team = the_team.load()) return run_on(team, job, wanted);
  pool().run(job, wanted);
}

}  // namespace tesseral
