// Loads and stores of the first `count` < lanes elements, for targets without masked ones: by way
// of a buffer, so that nothing past them is touched. Included inside the target's namespace.

template <class T>
struct Part {
  T items[lanes] = {};
  Part() = default;
  Part(const T* p, int count) {
    for (int i = 0; i < count; ++i) items[i] = p[i];
  }
  void copy_to(T* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = items[i];
  }
};

inline Floats load_part(const float* p, int count) { return load(Part<float>(p, count).items); }
inline Floats load_bf16_part(const std::uint16_t* p, int count) {
  return load_bf16(Part<std::uint16_t>(p, count).items);
}
inline Floats load_f16_part(const std::uint16_t* p, int count) {
  return load_f16(Part<std::uint16_t>(p, count).items);
}
inline void store_part(float* p, Floats x, int count) {
  Part<float> part;
  store(part.items, x);
  part.copy_to(p, count);
}
inline void store_bf16_part(std::uint16_t* p, Floats x, int count) {
  Part<std::uint16_t> part;
  store_bf16(part.items, x);
  part.copy_to(p, count);
}
inline void store_f16_part(std::uint16_t* p, Floats x, int count) {
  Part<std::uint16_t> part;
  store_f16(part.items, x);
  part.copy_to(p, count);
}
