// A call of attention as Python holds it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/attention.h"

namespace tesseral {

namespace nb = nanobind;

inline const Target& target_named(const std::string& name) {
  const Target* const found = find_target(name);
  if (found == nullptr) throw std::invalid_argument("this machine has no target " + name);
  return *found;
}

using Integers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Arrays come as addresses: the caller has checked their shapes and keeps them alive.
struct BoundCall {
  AttentionCall call;
  std::vector<Sequence> sequences;
  const Target* target = nullptr;
  int threads = 1;

  void set_target(const std::string& name, int n_threads) {
    target = &target_named(name);
    threads = n_threads;
  }

  void set_batch(std::int64_t batch, std::int64_t q_len, std::int64_t kv_len) {
    sequences.assign(static_cast<std::size_t>(batch), Sequence{});
    for (std::int64_t i = 0; i < batch; ++i) {
      Sequence& sequence = sequences[static_cast<std::size_t>(i)];
      sequence.batch = i;
      sequence.q_len = q_len;
      sequence.kv_len = kv_len;
    }
  }

  // Sequences that lie one after the other along the rows, or whose keys lie in blocks.
  void set_sequences(Integers q_starts, Integers q_lens, Integers kv_starts, Integers kv_lens,
                     std::optional<Table> blocks, std::int64_t block_size) {
    const std::size_t n = q_starts.shape(0);
    if (q_lens.shape(0) != n || kv_starts.shape(0) != n || kv_lens.shape(0) != n ||
        (blocks && blocks->shape(0) != n)) {
      throw std::invalid_argument("there must be one start, length and row of blocks a sequence");
    }
    sequences.assign(n, Sequence{});
    for (std::size_t i = 0; i < n; ++i) {
      sequences[i] = {0,          q_starts(i),
                      q_lens(i),  kv_starts(i),
                      kv_lens(i), blocks ? blocks->data() + i * blocks->shape(1) : nullptr};
    }
    call.block_size = block_size;
  }

  std::int64_t scratch_bytes(const std::string& target) const {
    return target_named(target).attention.scratch_floats(call) *
           static_cast<std::int64_t>(sizeof(float));
  }

  // Runs the call on arrays that lie so, at these addresses; 0 for none. The description stays as
  // it is, so that threads may share it.
  void run(std::uintptr_t query, std::uintptr_t key, std::uintptr_t key_scale,
           std::uintptr_t key_offset, std::uintptr_t value, std::uintptr_t value_scale,
           std::uintptr_t value_offset, std::uintptr_t mask, std::uintptr_t sinks,
           std::uintptr_t slopes, std::uintptr_t output, std::uintptr_t lse) const {
    const auto at = [](std::uintptr_t address) { return reinterpret_cast<const void*>(address); };
    if (target == nullptr) throw std::invalid_argument("a call needs a target before it runs");
    AttentionCall placed = call;
    placed.query.data = at(query);
    placed.key.rows.data = at(key);
    placed.key.scale.data = at(key_scale);
    placed.key.offset.data = at(key_offset);
    placed.value.rows.data = at(value);
    placed.value.scale.data = at(value_scale);
    placed.value.offset.data = at(value_offset);
    placed.mask.rows.data = at(mask);
    placed.sinks = static_cast<const float*>(at(sinks));
    placed.slopes = static_cast<const float*>(at(slopes));
    placed.output.data = at(output);
    placed.lse.data = at(lse);
    placed.sequences = sequences.data();
    placed.n_sequences = static_cast<std::int64_t>(sequences.size());
    nb::gil_scoped_release release;
    attention(*target, placed, threads);
  }
};

}  // namespace tesseral
