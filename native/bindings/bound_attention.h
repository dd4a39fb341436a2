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

// The arrays of a call.
enum Given : std::uint8_t {
  query,
  key,
  key_scale,
  key_offset,
  value,
  value_scale,
  value_offset,
  mask,
  sinks,
  slopes,
  output,
  lse,
  n_given
};

// Arrays come as addresses: the caller has checked their shapes and keeps them alive.
struct BoundCall {
  AttentionCall call;
  std::vector<Sequence> sequences;

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

  // The same call for other arrays that lie alike, at addresses in the order of `Given`; 0 for
  // none.
  BoundCall at(const std::vector<std::uintptr_t>& addresses) const {
    if (addresses.size() != n_given) throw std::invalid_argument("a call has 12 addresses");
    const auto given = [&](Given which) { return reinterpret_cast<const void*>(addresses[which]); };
    BoundCall placed = *this;
    AttentionCall& c = placed.call;
    c.query.data = given(query);
    c.key.rows.data = given(key);
    c.key.scale.data = given(key_scale);
    c.key.offset.data = given(key_offset);
    c.value.rows.data = given(value);
    c.value.scale.data = given(value_scale);
    c.value.offset.data = given(value_offset);
    c.mask.rows.data = given(mask);
    c.sinks = static_cast<const float*>(given(sinks));
    c.slopes = static_cast<const float*>(given(slopes));
    c.output.data = given(output);
    c.lse.data = given(lse);
    return placed;
  }

  void run(int threads, const std::string& target) {
    const Target& found = target_named(target);
    call.sequences = sequences.data();
    call.n_sequences = static_cast<std::int64_t>(sequences.size());
    nb::gil_scoped_release release;
    attention(found, call, threads);
  }
};

}  // namespace tesseral
