// Integers, bits, predicates, and values put together from parts.

#include <algorithm>

#include "rows.h"

template <class T>
void integers(std::string t) {
    using U = std::make_unsigned_t<T>;
    constexpr int bits = 8 * sizeof(T);
    add2<T, T, T>("add." + t, [](T a, T b) { return T(U(a) + U(b)); });
    add2<T, T, T>("sub." + t, [](T a, T b) { return T(U(a) - U(b)); });
    add2<T, T, T>("mul.lo." + t, [](T a, T b) { return T(U(u64(a) * u64(b))); });
    add2<T, T, T>("mul.hi." + t, [](T a, T b) { return T(((__int128)a * b) >> (8 * sizeof(T))); });
    add3<T, T, T, T>("mad.lo." + t, [](T a, T b, T c) { return T(U(u64(a) * u64(b) + u64(c))); });
    add2<T, T, T>("div." + t, [](T a, T b) {
        return b == 0 ? T(-1) : b == T(-1) && T(-1) < 0 ? T(U(0) - U(a)) : T(a / b);
    });
    add2<T, T, T>("rem." + t, [](T a, T b) { return b == 0 ? a : b == T(-1) && T(-1) < 0 ? T(0) : T(a % b); });
    add2<T, T, T>("min." + t, [](T a, T b) { return std::min(a, b); });
    add2<T, T, T>("max." + t, [](T a, T b) { return std::max(a, b); });
    add1<T, T>("abs." + t, [](T a) { return a < 0 ? T(U(0) - U(a)) : a; });
    add1<T, T>("neg." + t, [](T a) { return T(U(0) - U(a)); });
    add2<T, T, u32>("shr." + t, [](T a, u32 n) { return n >= u32(bits) ? T(a < 0 ? -1 : 0) : T(a >> n); });
    add3<T, T, u32, u32>("bfe." + t, [](T a, u32 at, u32 n) {
        at &= 255;
        n &= 255;
        if (n == 0) return T(0);
        T x = at >= u32(bits) ? T(a < 0 ? -1 : 0) : T(a >> at);
        return n >= u32(bits) ? x : T(T(U(x) << (bits - n)) >> (bits - n));
    });
    if constexpr (sizeof(T) == 2) {  // pairs
        add("add." + t + "x2", binary<T, T, T, decltype([](T a, T b) { return T(U(a) + U(b)); }), 64>);
        add("min." + t + "x2", binary<T, T, T, decltype([](T a, T b) { return std::min(a, b); }), 64>);
        add("max." + t + "x2", binary<T, T, T, decltype([](T a, T b) { return std::max(a, b); }), 64>);
    }
    if constexpr (sizeof(T) < 8) {
        using W = std::conditional_t<sizeof(T) == 2, std::conditional_t<(T(-1) < 0), s32, u32>,
                                     std::conditional_t<(T(-1) < 0), s64, u64>>;
        add2<W, T, T>("mul.wide." + t, [](T a, T b) { return W(W(a) * W(b)); });
        add3<W, T, T, W>("mad.wide." + t, [](T a, T b, W c) { return W(u64(W(a) * W(b)) + u64(c)); });
    }
}

template <class U>
void bits(std::string t) {
    constexpr int n = 8 * sizeof(U);
    add2<U, U, U>("and." + t, [](U a, U b) { return U(a & b); });
    add2<U, U, U>("or." + t, [](U a, U b) { return U(a | b); });
    add2<U, U, U>("xor." + t, [](U a, U b) { return U(a ^ b); });
    add1<U, U>("not." + t, [](U a) { return U(~a); });
    add1<U, U>("mov." + t, [](U a) { return a; });
    add2<U, U, u32>("shl." + t, [](U a, u32 by) { return by >= u32(n) ? U(0) : U(a << by); });
    add2<U, U, u32>("shr." + t, [](U a, u32 by) { return by >= u32(n) ? U(0) : U(a >> by); });
    if constexpr (n >= 32) {
        add1<u32, U>("popc." + t, [](U a) { return u32(__builtin_popcountll(a)); });
        add1<u32, U>("clz." + t, [](U a) { return a ? u32(__builtin_clzll(a) - (64 - n)) : u32(n); });
        add1<U, U>("brev." + t, [](U a) {
            U r = 0;
            for (int i = 0; i < n; i++) r |= (a >> i & 1) << (n - 1 - i);
            return r;
        });
        add("bfi." + t, [](Warp& w, const Inst& in, u32 m) {
            for (int i = 0; i < 32; i++)
                if (m >> i & 1) {
                    const U a = get(w, in, 1, i), b = get(w, in, 2, i);
                    const u32 at = get(w, in, 3, i) & 255, len = get(w, in, 4, i) & 255;
                    const U field = at >= u32(n) || !len ? U(0) : U((len >= u32(n) ? ~U(0) : (U(1) << len) - 1) << at);
                    put(w, in, 0, i, (b & ~field) | (at >= u32(n) ? U(0) : a << at & field));
                }
        });
    }
    add("selp." + t, [](Warp& w, const Inst& in, u32 m) {
        U r[32];
        const U *a = row<U>(w, in, 1), *b = row<U>(w, in, 2);
        const u32 p = *row<u32>(w, in, 3);
        for (int i = 0; i < 32; i++) r[i] = p >> i & 1 ? a[i] : b[i];
        blend(row<U>(w, in, 0), r, m);
    });
}

static void prmt(Warp& w, const Inst& in, u32 m) {
    u32 t[32];
    const u32 *a = row<u32>(w, in, 1), *b = row<u32>(w, in, 2), *c = row<u32>(w, in, 3);
    for (int i = 0; i < 32; i++) {
        const u64 both = u64(b[i]) << 32 | a[i];
        u32 r = 0;
        for (int j = 0; j < 4; j++) {
            const int s = c[i] >> 4 * j & 15;
            u8 x = both >> 8 * (s & 7);
            if (s & 8) x = x & 128 ? 255 : 0;
            r |= u32(x) << 8 * j;
        }
        t[i] = r;
    }
    blend(row<u32>(w, in, 0), t, m);
}

static void lop3(Warp& w, const Inst& in, u32 m) {
    u32 t[32];
    const u32 *a = row<u32>(w, in, 1), *b = row<u32>(w, in, 2), *c = row<u32>(w, in, 3);
    const u32 f = row<u32>(w, in, 4)[0];
    for (int i = 0; i < 32; i++) {
        u32 r = 0;
        for (int k = 0; k < 8; k++)
            if (f >> k & 1) r |= (k & 4 ? a[i] : ~a[i]) & (k & 2 ? b[i] : ~b[i]) & (k & 1 ? c[i] : ~c[i]);
        t[i] = r;
    }
    blend(row<u32>(w, in, 0), t, m);
}

static void funnel(Warp& w, const Inst& in, u32 m) {  // flags: 1 right, 2 clamp
    u32 t[32];
    const u32 *a = row<u32>(w, in, 1), *b = row<u32>(w, in, 2), *c = row<u32>(w, in, 3);
    for (int i = 0; i < 32; i++) {
        const u32 n = in.flags & 2 ? std::min(c[i], 32u) : c[i] & 31;
        const u64 both = u64(b[i]) << 32 | a[i];
        t[i] = in.flags & 1 ? u32(both >> n) : u32(both << n >> 32);
    }
    blend(row<u32>(w, in, 0), t, m);
}

static void pack(Warp& w, const Inst& in, u32 m) {  // d, {parts}
    const int width = operand(w, in, 1).width;
    for (int i = 0; i < 32; i++)
        if (m >> i & 1) {
            u64 x = 0;
            for (int j = 0; j < in.n; j++) x |= get(w, in, 1 + j, i) << 8 * width * j;
            put(w, in, 0, i, x);
        }
}

static void unpack(Warp& w, const Inst& in, u32 m) {  // {parts}, a
    const int width = operand(w, in, 0).width;
    for (int i = 0; i < 32; i++)
        if (m >> i & 1) {
            const u64 x = get(w, in, in.n, i);
            for (int j = 0; j < in.n; j++) put(w, in, j, i, x >> 8 * width * j);
        }
}

template <class F>
void predicate(Warp& w, const Inst& in, u32 m) {
    blend_predicate(row<u32>(w, in, 0), F()(*row<u32>(w, in, 1), *row<u32>(w, in, in.count > 2 ? 2 : 1)), m);
}

template <class F>
void predicates(std::string name, F) {
    add(name + ".pred", predicate<F>);
}

void add_integers() {
    integers<s16>("s16");
    integers<u16>("u16");
    integers<s32>("s32");
    integers<u32>("u32");
    integers<s64>("s64");
    integers<u64>("u64");
    bits<u16>("b16");
    bits<u32>("b32");
    bits<u64>("b64");
    comparisons<s16>("s16");
    comparisons<u16>("u16");
    comparisons<u16>("b16");
    comparisons<s32>("s32");
    comparisons<u32>("u32");
    comparisons<u32>("b32");
    comparisons<s64>("s64");
    comparisons<u64>("u64");
    comparisons<u64>("b64");
    predicates("mov", [](u32 a, u32) { return a; });
    predicates("not", [](u32 a, u32) { return ~a; });
    predicates("and", [](u32 a, u32 b) { return a & b; });
    predicates("or", [](u32 a, u32 b) { return a | b; });
    predicates("xor", [](u32 a, u32 b) { return a ^ b; });
    add("pack", pack);
    add("unpack", unpack);
    add("prmt.b32", prmt);
    add("lop3.b32", lop3);
    add("shf.b32", funnel);
}
