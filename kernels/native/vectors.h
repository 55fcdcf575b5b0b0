// Vectors as wide as the registers of the processor that is compiled for, and functions of their elements.
//
// The compiler's own vector types (GCC, Clang) serve every processor from one text. Rows of scratch memory are padded to
// whole vectors; `Tail` reads and writes rows of tensors, which are not.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>  // for loads and stores of a few lanes; all else is the compiler's own
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int REGISTERS = 16;
#else
constexpr int LANES = 4;
#if defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
#endif

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));  // bits of numbers: sums wrap, of NaN's too
typedef float loose_vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t loose_ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static INLINE vec load(const float* p) { return *reinterpret_cast<const loose_vec*>(p); }
static INLINE void store(float* p, vec x) { *reinterpret_cast<loose_vec*>(p) = x; }
// What is read soon, where the processor does not see it coming, into the cache. No fault where there is no memory.
static INLINE void fetch(const float* p) { __builtin_prefetch(p, 0, 2); }

// Past the caches: no line is read only to be overwritten whole. p is a multiple of a vector's size; other threads see
// it after `end_streams`.
static INLINE void stream(float* p, vec x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, reinterpret_cast<__m512>(x));
#elif defined(__AVX__)
  _mm256_stream_ps(p, reinterpret_cast<__m256>(x));
#else
  *reinterpret_cast<vec*>(p) = x;
#endif
}
static INLINE void end_streams() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

static INLINE vec all(float x) { return x - vec{}; }
static INLINE vec zeros() { return vec{}; }

// `n` rounded up to whole vectors.
static INLINE int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// A NaN in x stays.
static INLINE vec at_least(vec x, vec least) { return x < least ? least : x; }
static INLINE vec at_most(vec x, vec most) { return x > most ? most : x; }
static INLINE vec larger(vec a, vec b) { return a < b ? b : a; }

// Lanes of the last vector of a row of `n` numbers.
struct Tail {
  int64_t whole;  // numbers in whole vectors
  int rest;       // numbers in the vector behind them
  ints mask;      // all bits set in the lanes that hold one of them

  explicit Tail(int64_t n) : whole(n / LANES * LANES), rest(static_cast<int>(n - whole)) {
    for (int lane = 0; lane < LANES; ++lane) mask[lane] = lane < rest ? -1 : 0;
  }
  // The other lanes are 0, and their memory is not read.
  INLINE vec load(const float* p) const {
#if defined(__AVX512F__)
    return reinterpret_cast<vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << rest) - 1), p));
#elif defined(__AVX__)
    return reinterpret_cast<vec>(_mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask)));
#else
    float lanes[LANES] = {};
    for (int lane = 0; lane < rest; ++lane) lanes[lane] = p[lane];
    return ::load(lanes);
#endif
  }
  // The memory of the other lanes stays.
  INLINE void store(float* p, vec x) const {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << rest) - 1), reinterpret_cast<__m512>(x));
#elif defined(__AVX__)
    _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256>(x));
#else
    for (int lane = 0; lane < rest; ++lane) p[lane] = x[lane];
#endif
  }
  INLINE vec only(vec x) const { return reinterpret_cast<vec>(reinterpret_cast<ints>(x) & mask); }
  INLINE vec or_else(vec x, float other) const { return mask ? x : all(other); }
};

template <int N>
struct Part {
  typedef float type __attribute__((vector_size(N * 4), may_alias));
};

// Sum and maximum of the lanes, by halves.
static INLINE float sum(vec x) {
  const float* p = reinterpret_cast<const float*>(&x);
#if defined(__AVX512F__)
  typename Part<8>::type x8 = *reinterpret_cast<const Part<8>::type*>(p) + *reinterpret_cast<const Part<8>::type*>(p + 8);
  p = reinterpret_cast<const float*>(&x8);
#endif
#if defined(__AVX__)
  typename Part<4>::type x4 = *reinterpret_cast<const Part<4>::type*>(p) + *reinterpret_cast<const Part<4>::type*>(p + 4);
#else
  typename Part<4>::type x4 = *reinterpret_cast<const Part<4>::type*>(p);
#endif
  return (x4[0] + x4[2]) + (x4[1] + x4[3]);
}

static INLINE float max(vec x) {  // of numbers: a NaN may be lost
  float lanes[LANES] __attribute__((aligned(64)));
  store(lanes, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] = lanes[lane] < lanes[lane + half] ? lanes[lane + half] : lanes[lane];
  return lanes[0];
}

// 0, 1, 2, ...
static INLINE ints lane_numbers() {
  ints numbers;
  for (int lane = 0; lane < LANES; ++lane) numbers[lane] = lane;
  return numbers;
}

// Of a and b one behind the other, the elements that `from` numbers; a constant.
template <typename Vector>
static INLINE Vector shuffle(Vector a, Vector b, ints from) {
#if defined(__clang__)
  Vector result;
  for (int lane = 0; lane < LANES; ++lane) result[lane] = from[lane] < LANES ? a[from[lane]] : b[from[lane] - LANES];
  return result;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// Of two vectors one behind the other, the elements whose lane has not the bit `step`, and those that have it.
struct Pairs {
  ints low, high;
  explicit INLINE Pairs(int step) {
    const ints lane = lane_numbers(), upper = (lane & step) != 0;
    low = upper ? lane - step + LANES : lane, high = upper ? lane + LANES : lane + step;
  }
};

// Reduces each of LANES values of vectors to one lane: lane i of rows[0] is that of rows[i]. A step pairs values STEP
// apart: join(a, b, low, high) takes the elements `low` of both, one behind the other, together with the elements `high`.
template <int STEP = 1, typename Value, typename Join>
static INLINE void across(Value (&rows)[LANES], const Join& join) {
  if constexpr (STEP < LANES) {
    const Pairs pairs(STEP);
    UNROLL for (int i = 0; i < LANES; i += 2 * STEP) rows[i] = join(rows[i], rows[i + STEP], pairs.low, pairs.high);
    across<2 * STEP>(rows, join);
  }
}

// Lane j of rows[i] becomes lane i of rows[j].
template <int STEP = 1>
static INLINE void transpose(vec (&rows)[LANES]) {
  if constexpr (STEP < LANES) {
    const Pairs pairs(STEP);
    UNROLL for (int i = 0; i < LANES; ++i) {
      if (i & STEP) continue;
      const vec a = rows[i], b = rows[i + STEP];
      rows[i] = shuffle(a, b, pairs.low);
      rows[i + STEP] = shuffle(a, b, pairs.high);
    }
    transpose<2 * STEP>(rows);
  }
}

// Sum of the lanes of each of LANES vectors.
static INLINE vec sums_across(vec (&rows)[LANES]) {
  across(rows, [](vec a, vec b, ints low, ints high) { return shuffle(a, b, low) + shuffle(a, b, high); });
  return rows[0];
}

// e^x = p 2^n, with p about 1 and n an integer.
struct Power {
  vec p;
  ints n;

  explicit INLINE Power(vec x) {  // -87.33 <= x <= 88.73
    const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const vec shifted = x * 1.44269504f + magic;
    const vec whole = shifted - magic;
    vec r = x - whole * 0.693359375f;  // log(2) in two parts
    r = r + whole * 2.12194440e-4f;

    p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    n = reinterpret_cast<ints>(shifted) - 0x4B400000;
  }
};

// 2^n
static INLINE vec power_of_2(ints n) { return reinterpret_cast<vec>((n + 127) << 23); }

// e^x of x that is not above 0 by more than rounding, within 2 units of the last place; 0 below the least normal number;
// NaN stays.
static INLINE vec exp_below(vec x) {
  const Power power(at_least(x, all(-87.33f)));
  return x < -87.33f ? zeros() : power.p * power_of_2(power.n);
}

// 2^x of x that is below 127, within 2 units of the last place; 0 from -127 on, about 0 where the result is below the least
// normal number; NaN stays.
static INLINE vec exp2(vec x) {
  const vec magic = all(12582912.0f);  // as in Power; its low bits, moved to the exponent, are all that is left of n
  x = at_least(x, all(-127.0f));
  const vec shifted = x + magic, r = x - (shifted - magic);

  vec p = all(1.5353362e-4f);
  p = p * r + 1.3398874e-3f;
  p = p * r + 9.6184374e-3f;
  p = p * r + 5.5503325e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314720e-1f;
  p = p * r + 1.0f;
  return reinterpret_cast<vec>(reinterpret_cast<words>(p) + (reinterpret_cast<words>(shifted) << 23));
}

// Natural logarithm of normal numbers above 0, within 2 units of the last place.
static INLINE vec log(vec x) {
  const words bits = reinterpret_cast<words>(x) + (0x3F800000 - 0x3F3504F3);  // m of x = m 2^n lies about 1
  const vec n = __builtin_convertvector(reinterpret_cast<ints>(bits >> 23) - 127, vec);
  const vec f = reinterpret_cast<vec>((bits & 0x7FFFFF) + 0x3F3504F3) - 1.0f, square = f * f;

  vec p = all(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;

  const vec rest = p * (f * square) - n * 2.12194440e-4f - square * 0.5f;
  return f + rest + n * 0.693359375f;
}

// log(1 + x) of finite x that is not below 0: the rounding of 1 + x is divided out again (Kahan). NaN stays.
static INLINE vec log1p(vec x) {
  const vec above = x + 1.0f;
  return above == 1.0f ? x : log(above) * (x / (above - 1.0f));
}

// erf(x) within a few units of the last place: a quotient of polynomials on [-4, 4], beyond which it is +-1.
static INLINE vec erf(vec x) {
  const vec b = at_most(at_least(x, all(-4.0f)), all(4.0f));
  const vec s = b * b;

  vec p = all(-2.72614225801306e-10f);
  p = p * s + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = p * s - 1.60960333262415e-02f;

  vec q = all(-1.45660718464996e-05f);
  q = q * s - 2.13374055278905e-04f;
  q = q * s - 1.68282697438203e-03f;
  q = q * s - 7.37332916720468e-03f;
  q = q * s - 1.42647390514189e-02f;

  return b * p / q;
}

// Distribution function and density of the normal distribution: gelu(x) = x cdf(x), gelu'(x) = cdf(x) + x density(x).
static INLINE vec normal_cdf(vec x) { return erf(x * 0.70710678f) * 0.5f + 0.5f; }
static INLINE vec normal_density(vec x) { return exp2(x * x * -0.72134752f) * 0.39894228f; }
