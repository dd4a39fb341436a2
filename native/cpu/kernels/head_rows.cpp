// Heads of tokens, a block of them at a time: widened, multiplied, and coded in the L1 cache.
#include "tesseral/head_rows.h"

#include "kernels/small_products.h"

namespace tesseral::TESSERAL_TARGET {
namespace {

constexpr int64_t block = 24;  // heads; a multiple of the rows of a tile
constexpr float largest_f16 = 65504.0f;
constexpr float smallest_f16 = 0x1p-14f;

int64_t place(const HeadRows& call, const HeadSteps& steps, int64_t index) {
  const int64_t token = index % call.tokens;
  const int64_t head = index / call.tokens % call.heads;
  const int64_t batch = index / call.tokens / call.heads;
  return batch * steps.batch + head * steps.head + token * steps.token;
}

float within_f16(float x) {
  return x < -largest_f16 ? -largest_f16 : x > largest_f16 ? largest_f16 : x;
}

// To the nearest integer, ties to even; for magnitudes below 2^22.
inline Floats to_integer(Floats x) {
  const Floats large = broadcast(0x1.8p23f);
  return subtract(add(x, large), large);
}

void pack_codes(const uint8_t* codes, int64_t n, int width, uint8_t* out) {
  if (width == 8) {
    for (int64_t i = 0; i < n; ++i) out[i] = codes[i];
  } else if (width == 4) {
    for (int64_t i = 0; i < n / 2; ++i) {
      out[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    }
  } else {
    for (int64_t i = 0; i < n / 4; ++i) {
      const uint8_t* c = codes + 4 * i;
      out[i] = static_cast<uint8_t>(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
    }
  }
}

// Codes of one head; `bytes` is scratch for dim of them.
void encode(const HeadRows& call, int64_t index, const float* y, int8_t* bytes) {
  Floats least = load(y);
  Floats most = least;
  for (int64_t i = lanes; i < call.dim; i += lanes) {
    least = lesser(least, load(y + i));
    most = larger(most, load(y + i));
  }
  const float low = within_f16(-largest_lane(subtract(zero(), least)) * call.clip[0]);
  const float high = within_f16(largest_lane(most) * call.clip[1]);
  const auto largest = static_cast<float>((1 << call.bits) - 1);
  const uint16_t offset = f16_of_float(low);
  const float span = (high - float_of_f16(offset)) / largest;
  const uint16_t scale = f16_of_float(span > smallest_f16 ? span : smallest_f16);
  const Floats start = broadcast(float_of_f16(offset));
  const Floats step = broadcast(float_of_f16(scale));
  for (int64_t i = 0; i < call.dim; i += lanes) {
    const Floats code = to_integer(divide(subtract(load(y + i), start), step));
    const Floats inside = lesser(larger(code, zero()), broadcast(largest));
    store_rounded(bytes + i, subtract(inside, broadcast(128.0f)), lanes);  // as int8
  }
  for (int64_t i = 0; i < call.dim; ++i) bytes[i] = static_cast<int8_t>(bytes[i] ^ -128);
  const int width = call.bits <= 2 ? 2 : call.bits <= 4 ? 4 : 8;
  pack_codes(reinterpret_cast<const uint8_t*>(bytes), call.dim, width,
             call.codes + place(call, call.code_steps, index));
  const int64_t at = place(call, call.scale_steps, index);
  call.scale[at] = scale;
  call.offset[at] = offset;
}

// Turns a head by its token's angles.
void rotate(const HeadRows& call, int64_t index, float* x) {
  const int64_t half = call.dim / 2;
  const int64_t at = place(call, call.rotary_steps, index);
  const auto turned = [&](Floats same, Floats other, int64_t c) {
    const Floats cosine = load_lanes(call.element, call.cosine, at + c);
    const Floats sine = load_lanes(call.element, call.sine, at + c);
    return rounded(call.element, add(rounded(call.element, multiply(same, cosine)),
                                     rounded(call.element, multiply(other, sine))));
  };
  for (int64_t c = 0; c < half; c += lanes) {
    const Floats first = load(x + c);
    const Floats second = load(x + half + c);
    store(x + c, turned(first, subtract(zero(), second), c));
    store(x + half + c, turned(second, first, half + c));
  }
}

int64_t scratch(const HeadRows& call) { return (2 * block + 1) * call.dim; }

Status run(const HeadRows& call, int64_t begin, int64_t end, float* scratch) {
  if (call.dim < 1 || call.dim % head_rows_multiple != 0 || begin < 0 ||
      end > call.batch * call.heads * call.tokens ||
      (call.cosine != nullptr && call.dim % (2 * head_rows_multiple) != 0) ||
      (call.out == nullptr && (call.bits < 2 || call.bits > 8))) {
    return Status::invalid;
  }
  const int64_t dim = call.dim;
  float* input = scratch;
  float* output = call.factor == nullptr ? input : input + block * dim;
  int8_t* bytes = reinterpret_cast<int8_t*>(scratch + 2 * block * dim);
  for (int64_t first = begin; first < end; first += block) {
    const int64_t count = smaller(block, end - first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = place(call, call.row_steps, first + i);
      for (int64_t c = 0; c < dim; c += lanes) {
        store(input + i * dim + c, load_lanes(call.element, call.rows, at + c));
      }
      if (call.cosine != nullptr) rotate(call, first + i, input + i * dim);
    }
    if (call.factor != nullptr) {
      multiply(input, count, dim, 1, dim, call.factor, dim, {output, dim, dim});
    }
    for (int64_t i = 0; i < count; ++i) {
      float* y = output + i * dim;
      const int64_t at = call.out == nullptr ? 0 : place(call, call.out_steps, first + i);
      for (int64_t c = 0; c < dim; c += lanes) {
        if (call.out != nullptr) {
          store_some(call.element, call.out, at + c, load(y + c), lanes);
        } else if (call.factor != nullptr) {
          store(y + c, rounded(call.element, load(y + c)));
        }
      }
      if (call.out == nullptr) encode(call, first + i, y, bytes);
    }
  }
  return Status::ok;
}

}  // namespace

extern const HeadRowsKernels head_rows;
const HeadRowsKernels head_rows = {scratch, run};

}  // namespace tesseral::TESSERAL_TARGET
