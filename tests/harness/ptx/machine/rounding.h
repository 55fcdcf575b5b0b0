// Rounding of doubles to narrower types.
#pragma once

#include <cfloat>
#include <cmath>

#include "state.h"

inline float flush(float x) {
    return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x;
}

template <class T>
inline T lower(T a, T b) {
    return a < b || b != b ? a : b < a || a != a ? b : std::signbit(float(a)) ? a : b;
}

template <class T>
inline T higher(T a, T b) {
    return a > b || b != b ? a : b > a || a != a ? b : std::signbit(float(a)) ? b : a;
}

// Round a double to T, towards zero, down or up: take the nearest, and step back where it went too far.
template <class T>
T step(T x, int by) {
    using U = std::conditional_t<sizeof(T) == 2, u16, std::conditional_t<sizeof(T) == 4, u32, u64>>;
    U b;
    memcpy(&b, &x, sizeof b);
    b += by;
    memcpy(&x, &b, sizeof b);
    return x;
}

enum Rounding { NEAREST, ZERO, DOWN, UP, AWAY, INT_NEAREST, INT_ZERO, INT_DOWN, INT_UP };
template <class T>
T narrow(double x, int rounding) {
    T near;
    if constexpr (std::is_same_v<T, bf16>)
        near = bf16(float(x));
    else
        near = T(x);
    const double got = double(float(near));
    if (sizeof(T) == 8 || x != x || got == x) return near;
    if (rounding == ZERO) return std::fabs(got) > std::fabs(x) ? step(near, -1) : near;
    if (rounding == DOWN && got > x) return step(near, x > 0 ? -1 : 1);
    if (rounding == UP && got < x) return step(near, x > 0 ? 1 : -1);
    return near;
}
