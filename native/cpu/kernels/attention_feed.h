// Asking for keys or values while others are worked on.
#pragma once

#include "kernels/attention_rows.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t feed_pace = 8;  // keys between steps where each takes little time

// Keys that are read next, and whose they are.
struct KeysAhead {
  KeyRun run = {0, 0, 0};
  int64_t kv_head = 0;
};

// Lines of a row that are asked for at a time: with AVX-512 the whole row. On chips without it rows
// come one line at a time, since many requests at once would keep what is computed from its own.
constexpr int64_t feed_lines = lanes < 16 ? 1 : attention_max_dim * 4 / 64;

// Asks for rows of memory, some with every step of other work, so that memory is read at an even
// pace while the chip computes. Rows are taken from four places in turns: where a page is, takes as
// long to find out as to read a line of it, and meanwhile lines of other pages are on their way.
class Feed {
 public:
  Feed() = default;
  // Rows of `ahead`, within so many steps; up to three more where they do not divide by four.
  Feed(const KeyValueRows& source, const KeysAhead& ahead, int64_t steps)
      : next_(row_of(source.rows, ahead.run.batch, ahead.kv_head, ahead.run.row)),
        stride_(source.rows.row),
        bytes_(row_bytes(source)),
        part_((ahead.run.count + 3) / 4 * stride_),
        rounds_((ahead.run.count + 3) / 4 * rounds_of(bytes_)),
        left_(rounds_),
        steps_(steps) {}

  // Inlined always: GCC takes a function that only asks for memory for one without effect, and
  // drops its calls.
  [[gnu::always_inline]] void step(int64_t steps = 1) {
    due_ += steps * rounds_;
    for (; due_ >= steps_ && left_ > 0; --left_) {
      due_ -= steps_;
      const int64_t end = at_most(bytes_, at_ + 64 * feed_lines);
      for (; at_ < end; at_ += 64) {
        const char* p = next_ + at_;
        __builtin_prefetch(p, 0, 2);
        __builtin_prefetch(p + part_, 0, 2);
        __builtin_prefetch(p + 2 * part_, 0, 2);
        __builtin_prefetch(p + 3 * part_, 0, 2);
      }
      if (at_ < bytes_) continue;
      at_ = 0;
      next_ += stride_;
    }
  }

 private:
  static int64_t rounds_of(int64_t bytes) {
    return (bytes + 64 * feed_lines - 1) / (64 * feed_lines);
  }

  const char* next_ = nullptr;  // row of the first place
  int64_t at_ = 0;              // byte of the row
  int64_t stride_ = 0;
  int64_t bytes_ = 0;
  int64_t part_ = 0;    // bytes from one place to the next
  int64_t rounds_ = 0;  // of the lines of four rows
  int64_t left_ = 0;    // rounds that have not been asked for
  int64_t steps_ = 1;
  int64_t due_ = 0;  // rounds to ask for, times steps
};

// Asks for scales and offsets of keys that are read next.
[[gnu::always_inline]] inline void feed_scales(const KeyValueRows& source, const KeysAhead& ahead) {
  if (!is_coded(source.element)) return;
  const Rows* const both[] = {&source.scale, &source.offset};
  for (const Rows* rows : both) {
    if (rows->data == nullptr) continue;
    const char* p = row_of(*rows, ahead.run.batch, ahead.kv_head, ahead.run.row);
    const int64_t step = rows->row <= 0 ? 1 : at_least(1, 64 / rows->row);
    for (int64_t i = 0; i < ahead.run.count; i += step) prefetch(p + i * rows->row, 1);
  }
}

}  // namespace
}  // namespace tesseral::TESSERAL_TARGET
