// Conversions between types.

#include <algorithm>
#include <limits>

#include "rounding.h"
#include "rows.h"

static double to_integer(double x, int rounding) {
    switch (rounding) {
        case INT_NEAREST: return std::nearbyint(x);
        case INT_ZERO: return std::trunc(x);
        case INT_DOWN: return std::floor(x);
        case INT_UP: return std::ceil(x);
    }
    return x;
}

template <class T>
constexpr bool is_float = !std::is_integral_v<T>;
template <class D, class S>
D convert(S s, int rounding, bool saturate) {
    if constexpr (is_float<S> && is_float<D>) {
        double x = to_integer(double(s), rounding);
        if (saturate) x = x > 0 ? std::min(x, 1.0) : 0.0;
        return narrow<D>(x, rounding);
    } else if constexpr (is_float<S>) {
        const double x = to_integer(double(s), rounding >= INT_NEAREST ? rounding : int(INT_ZERO));
        if (x != x) return D(0);
        const double low = double(std::numeric_limits<D>::min()), high = double(std::numeric_limits<D>::max());
        return x <= low ? std::numeric_limits<D>::min() : x >= high ? std::numeric_limits<D>::max() : D(x);
    } else if constexpr (is_float<D>) {
        if constexpr (sizeof(D) == 8 || sizeof(S) < 8)
            return narrow<D>(double(s), rounding);
        else
            return D(float(s));
    } else {
        if (!saturate) return D(s);
        const __int128 x = s, low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
        return D(std::clamp(x, low, high));
    }
}

template <class D, class S>
void cvt(Warp& w, const Inst& in, u32 m) {
    const Operand &from = operand(w, in, 1), &to = operand(w, in, 0);
    const u8* source = &w.file[from.at];
    u8* target = &w.file[to.at];
    for (int i = 0; i < 32; i++)
        if (m >> i & 1) {
            S s;
            memcpy(&s, source + i * from.width, sizeof s);
            if constexpr (std::is_same_v<S, float>)
                if (in.flags & 2) s = flush(s);
            D d = convert<D>(s, in.n, in.flags & 1);
            if constexpr (std::is_same_v<D, float>)
                if (in.flags & 2) d = flush(d);
            u64 x = 0;
            memcpy(&x, &d, sizeof d);
            if (to.width > int(sizeof d)) x = extend(x, sizeof d, std::is_signed_v<D> && std::is_integral_v<D>);
            memcpy(target + i * to.width, &x, to.width);
        }
}

template <class D>
void conversions_to(std::string d) {
    add("cvt." + d + ".s8", cvt<D, s8>);
    add("cvt." + d + ".u8", cvt<D, u8>);
    add("cvt." + d + ".s16", cvt<D, s16>);
    add("cvt." + d + ".u16", cvt<D, u16>);
    add("cvt." + d + ".s32", cvt<D, s32>);
    add("cvt." + d + ".u32", cvt<D, u32>);
    add("cvt." + d + ".s64", cvt<D, s64>);
    add("cvt." + d + ".u64", cvt<D, u64>);
    add("cvt." + d + ".f16", cvt<D, f16>);
    add("cvt." + d + ".bf16", cvt<D, bf16>);
    add("cvt." + d + ".f32", cvt<D, float>);
    add("cvt." + d + ".f64", cvt<D, double>);
}

template <class D>
void cvt_pair(Warp& w, const Inst& in, u32 m) {  // d = {high: a, low: b}
    D t[64];
    const float *a = row<float>(w, in, 1), *b = row<float>(w, in, 2);
    for (int i = 0; i < 32; i++) {
        float low = b[i], high = a[i];
        if (in.flags & 4) low = low > 0 || low != low ? low : 0, high = high > 0 || high != high ? high : 0;
        t[2 * i] = narrow<D>(low, in.n), t[2 * i + 1] = narrow<D>(high, in.n);
    }
    blend<D, 64>(row<D>(w, in, 0), t, m);
}

void add_conversions() {
    conversions_to<s8>("s8");
    conversions_to<u8>("u8");
    conversions_to<s16>("s16");
    conversions_to<u16>("u16");
    conversions_to<s32>("s32");
    conversions_to<u32>("u32");
    conversions_to<s64>("s64");
    conversions_to<u64>("u64");
    conversions_to<f16>("f16");
    conversions_to<bf16>("bf16");
    conversions_to<float>("f32");
    conversions_to<double>("f64");
    add("cvt.bf16x2.f32", cvt_pair<bf16>);
    add("cvt.f16x2.f32", cvt_pair<f16>);
    add1<u32, u32>("cvt.tf32.f32",
                   [](u32 a) { return (a & 0x7f800000) == 0x7f800000 ? a : (a + 0x1000) & 0xffffe000; });
}
