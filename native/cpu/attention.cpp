#include "attention.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "memory.h"
#include "threads.h"

namespace tesseral {
namespace {

using std::int64_t;

// Memory that a thread keeps from call to call: fresh pages would cost more than a short call.
struct Scratch {
  Buffer<float> memory;
  int64_t size = 0;

  float* of(int64_t count) {
    if (size < count) {
      memory.reset();
      size = 0;
      memory = allocate<float>(count);
      size = count;
    }
    return memory.get();
  }
};

thread_local Scratch scratch_of_thread;
thread_local Scratch states_of_caller;

void check(const AttentionCall& call) {
  const auto fits = [](const KeyValueRows& x) {
    return x.width > 0 && x.width <= attention_max_dim;
  };
  const bool sizes = fits(call.key) && fits(call.value) && call.kv_heads > 0 && call.q_heads > 0 &&
                     call.q_heads % call.kv_heads == 0;
  const bool plan = call.strip_rows >= group_of(call) && call.key_block > 0 &&
                    call.key_block <= attention_max_key_block && call.split_keys >= 0;
  if (!sizes || !plan) throw std::invalid_argument("attention: sizes or plan are out of range");
  for (int64_t i = 0; i < call.n_sequences; ++i) {
    const Sequence& sequence = call.sequences[i];
    if (sequence.q_len < 0 || sequence.kv_len < 0 ||
        (sequence.blocks != nullptr && call.block_size < 1)) {
      throw std::invalid_argument("attention: a sequence has a negative length or no block size");
    }
  }
}

// The keys that queries [q_begin, q_end) of a sequence see.
void visible_keys(const AttentionCall& call, AttentionTask& task) {
  const Sequence& sequence = call.sequences[task.sequence];
  const int64_t offset = sequence.kv_len - sequence.q_len;
  task.k_begin = std::clamp<int64_t>(task.q_begin + offset - call.left, 0, sequence.kv_len);
  task.k_end = std::clamp<int64_t>(task.q_end + offset + call.right, task.k_begin, sequence.kv_len);
}

class Run {
 public:
  Run(const AttentionKernels& kernels, const AttentionCall& call) : kernels_(kernels), call_(call) {
    const int64_t step = call.strip_rows / group_of(call);
    for (int64_t s = 0; s < call.n_sequences; ++s) {
      for (int64_t head = 0; head < call.kv_heads; ++head) {
        for (int64_t q = 0; q < call.sequences[s].q_len; q += step) add_strip(s, head, q, step);
      }
    }
    place_states();
    // the longest first, so that none is left over at the end
    order_.resize(tasks_.size());
    for (std::size_t i = 0; i < order_.size(); ++i) order_[i] = i;
    std::stable_sort(order_.begin(), order_.end(),
                     [this](std::size_t a, std::size_t b) { return cost(a) > cost(b); });
  }

  void run(int n_threads) {
    const int64_t floats = kernels_.scratch_floats(call_);
    for (std::size_t i = n_threads; i < order_.size(); ++i) {
      tasks_[order_[i - n_threads]].next = &tasks_[order_[i]];
    }
    std::vector<float*> memory(static_cast<std::size_t>(n_threads), nullptr);
    auto task = [&](int64_t index, int worker) {
      float*& scratch = memory[static_cast<std::size_t>(worker)];
      if (scratch == nullptr) scratch = scratch_of_thread.of(floats);
      kernels_.run(call_, tasks_[order_[static_cast<std::size_t>(index)]], scratch);
    };
    parallel_for(static_cast<int64_t>(tasks_.size()), n_threads, task);
    auto merge = [&](int64_t index, int) {
      const auto& [first, count] = merges_[static_cast<std::size_t>(index)];
      kernels_.merge(call_, &tasks_[first], static_cast<int64_t>(count));
    };
    parallel_for(static_cast<int64_t>(merges_.size()), n_threads, merge);
  }

 private:
  void add_strip(int64_t sequence, int64_t head, int64_t q_begin, int64_t step) {
    AttentionTask task;
    task.sequence = sequence;
    task.kv_head = head;
    task.q_begin = q_begin;
    task.q_end = std::min(q_begin + step, call_.sequences[sequence].q_len);
    visible_keys(call_, task);
    const int64_t keys = task.k_end - task.k_begin;
    const int64_t parts =
        call_.split_keys == 0 ? 1 : std::max<int64_t>(1, ceil_div(keys, call_.split_keys));
    if (parts > 1) merges_.emplace_back(tasks_.size(), static_cast<std::size_t>(parts));
    const int64_t begin = task.k_begin;
    for (int64_t i = 0; i < parts; ++i) {
      task.k_begin = begin + keys * i / parts;
      task.k_end = begin + keys * (i + 1) / parts;
      tasks_.push_back(task);
    }
  }

  void place_states() {
    int64_t floats = 0;
    for (const auto& [first, count] : merges_) {
      floats +=
          kernels_.state_floats(call_, rows_of(call_, tasks_[first])) * static_cast<int64_t>(count);
    }
    if (floats == 0) return;
    float* state = states_of_caller.of(floats);
    for (const auto& [first, count] : merges_) {
      for (std::size_t i = first; i < first + count; ++i) {
        tasks_[i].state = state;
        state += kernels_.state_floats(call_, rows_of(call_, tasks_[i]));
      }
    }
  }

  int64_t cost(std::size_t i) const {
    return rows_of(call_, tasks_[i]) * (tasks_[i].k_end - tasks_[i].k_begin);
  }

  const AttentionKernels& kernels_;
  const AttentionCall& call_;
  std::vector<AttentionTask> tasks_;
  std::vector<std::size_t> order_;
  std::vector<std::pair<std::size_t, std::size_t>> merges_;  // first task and number of tasks
};

}  // namespace

void attention(const Target& target, const AttentionCall& call, int n_threads) {
  check(call);
  Run(target.attention, call).run(std::max(1, n_threads));
}

}  // namespace tesseral
