// Exact attention: what a call consists of, and the table of kernels that each instruction set
// offers for it.
#pragma once

#include <cstdint>

#include "tesseral/status.h"

namespace tesseral {

constexpr std::int64_t attention_max_dim = 256;
constexpr std::int64_t attention_max_key_block = 512;
constexpr std::int64_t attention_unbounded = INT64_MAX / 4;

enum class Element : std::uint8_t { f32, bf16, f16, bits8, bits4, bits2, boolean };

// Rows of an array with axes (batch, head, row, column) whose columns are neighbours; strides in
// bytes. Of paged keys, "batch" is the axis of blocks.
struct Rows {
  const void* data = nullptr;
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t row = 0;
};

// Keys or values. Codes of a row stand for scale * code + offset; without offset they are signed.
struct KeyValueRows {
  Element element = Element::f32;
  std::int64_t width = 0;  // columns
  Rows rows;
  Element scale_element = Element::f32;
  Rows scale;
  Rows offset;
};

// Boolean (true = visible) or added to the scores; strides in bytes, zero where it broadcasts.
struct DenseMask {
  Element element = Element::boolean;
  Rows rows;  // no mask if its data is null
  std::int64_t column = 0;
};

// Queries that attend to the same keys. The last query stands beside the last key.
struct Sequence {
  std::int64_t batch = 0;
  std::int64_t q_start = 0;
  std::int64_t q_len = 0;
  std::int64_t kv_start = 0;
  std::int64_t kv_len = 0;
  const std::int64_t* blocks = nullptr;  // of paged keys: the block that holds each block_size
};

struct AttentionCall {
  Element element = Element::f32;  // of queries and output: f32, bf16 or f16
  Rows query;
  Rows output;
  Rows lse;  // float32, its column left out; may be null
  KeyValueRows key;
  KeyValueRows value;
  std::int64_t q_heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t block_size = 0;  // keys of a block; 0 if keys are not paged

  float scale = 1;
  float softcap = 0;                         // 0 for none
  const float* slopes = nullptr;             // of a linear bias, (sequences, q_heads)
  std::int64_t slopes_sequence = 0;          // elements from one sequence to the next
  const float* sinks = nullptr;              // (q_heads,)
  std::int64_t left = attention_unbounded;   // visible keys before the diagonal
  std::int64_t right = attention_unbounded;  // and after it
  DenseMask mask;

  const Sequence* sequences = nullptr;
  std::int64_t n_sequences = 0;

  // the plan
  std::int64_t strip_rows = 0;   // query rows, heads of a group counted, that share packed keys
  std::int64_t key_block = 0;    // keys packed at a time
  std::int64_t split_keys = 0;   // keys of a task, if a strip's are shared among several
  std::int64_t stream_rows = 0;  // up to so many rows keys are read in place, not packed
  bool bf16_dot = false;         // multiply bfloat16 pairs instead of widening them
  bool poison = false;           // fill scratch memory with NaN first, for tests
};

// Queries [q_begin, q_end) of all heads that share a key head, against keys [k_begin, k_end).
struct AttentionTask {
  std::int64_t sequence = 0;
  std::int64_t kv_head = 0;
  std::int64_t q_begin = 0;
  std::int64_t q_end = 0;
  std::int64_t k_begin = 0;
  std::int64_t k_end = 0;
  // Where the state goes if other tasks have the rest of the keys; null if this one has them all.
  // Rows are ordered by head of the group, then query: first limits, then sums, then
  // values (see kernels/attention_rows.h).
  float* state = nullptr;
  // What the same thread will probably do next, so that memory can be asked for ahead; or null.
  const AttentionTask* next = nullptr;
};

// Static, so that each instruction set compiles its own.
static inline std::int64_t group_of(const AttentionCall& call) {
  return call.q_heads / call.kv_heads;
}
static inline std::int64_t rows_of(const AttentionCall& call, const AttentionTask& task) {
  return (task.q_end - task.q_begin) * group_of(call);
}

struct AttentionKernels {
  int lanes;
  // floats of scratch memory that a task needs, and of the state of so many rows
  std::int64_t (*scratch_floats)(const AttentionCall&);
  std::int64_t (*state_floats)(const AttentionCall&, std::int64_t rows);
  void (*run)(const AttentionCall&, const AttentionTask&, float* scratch);
  // Merges the states of n tasks that differ in keys only, and writes the output.
  void (*merge)(const AttentionCall&, const AttentionTask* tasks, std::int64_t n_tasks);
};

}  // namespace tesseral
