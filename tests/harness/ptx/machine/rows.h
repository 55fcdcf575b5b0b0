// Rows of registers, and instructions that are a function of each lane's values.
#pragma once

#include <map>
#include <string>
#include <type_traits>

#include "state.h"
#include "watch.h"

// Runs an instruction for the lanes of a mask.
using Handler = void (*)(Warp&, const Inst&, u32);

// Every instruction that the machine knows, and its number by its name.
extern std::vector<Handler> handlers;
extern std::map<std::string, int> numbers;

inline void add(const std::string& name, Handler h) {
    numbers[name] = handlers.size();
    handlers.push_back(h);
}

void add_integers();
void add_floats();
void add_conversions();
void add_memory();
void add_lanes();
void add_matrices();

inline const Operand& operand(Warp& w, const Inst& in, int i) {
    return w.block->launch->operands[in.first + i];
}

template <class T>
T* row(Warp& w, const Inst& in, int i) {
    return reinterpret_cast<T*>(&w.file[operand(w, in, i).at]);
}

template <class T, int N = 32>
void blend(T* to, const T* from, u32 mask) {
    if (mask == ~0u)
        memcpy(to, from, N * sizeof(T));
    else
        for (int i = 0; i < N; i++)
            if (mask >> (i * 32 / N) & 1) to[i] = from[i];
}

inline void blend_predicate(u32* to, u32 from, u32 mask) {
    *to = (*to & ~mask) | (from & mask);
}

// A lane's integer, of the width that its row has.
inline u64 get(Warp& w, const Inst& in, int i, int lane) {
    const Operand& o = operand(w, in, i);
    u64 x = 0;
    memcpy(&x, &w.file[o.at + lane * o.width], o.width);
    return x;
}

inline void put(Warp& w, const Inst& in, int i, int lane, u64 x) {
    const Operand& o = operand(w, in, i);
    memcpy(&w.file[o.at + lane * o.width], &x, o.width);
}

inline u64 extend(u64 x, int bytes, bool is_signed) {
    if (bytes == 8) return x;
    const int drop = 64 - 8 * bytes;
    return is_signed ? u64(s64(x << drop) >> drop) : x << drop >> drop;
}

template <class D, class A, class F, int N>
void unary(Warp& w, const Inst& in, u32 m) {
    D t[N];
    const A* a = row<A>(w, in, 1);
    for (int i = 0; i < N; i++) t[i] = F()(a[i]);
    blend<D, N>(row<D>(w, in, 0), t, m);
}

template <class D, class A, class B, class F, int N>
void binary(Warp& w, const Inst& in, u32 m) {
    D t[N];
    const A* a = row<A>(w, in, 1);
    const B* b = row<B>(w, in, 2);
    for (int i = 0; i < N; i++) t[i] = F()(a[i], b[i]);
    blend<D, N>(row<D>(w, in, 0), t, m);
}

template <class D, class A, class B, class C, class F, int N>
void ternary(Warp& w, const Inst& in, u32 m) {
    D t[N];
    const A* a = row<A>(w, in, 1);
    const B* b = row<B>(w, in, 2);
    const C* c = row<C>(w, in, 3);
    for (int i = 0; i < N; i++) t[i] = F()(a[i], b[i], c[i]);
    blend<D, N>(row<D>(w, in, 0), t, m);
}

template <class A, class F>
void compare(Warp& w, const Inst& in, u32 m) {
    u32 bits = 0;
    const A *a = row<A>(w, in, 2), *b = row<A>(w, in, 3);
    for (int i = 0; i < 32; i++) bits |= u32(F()(a[i], b[i])) << i;
    u32 other = ~bits;
    if (in.flags) {  // combined with a predicate: and, or, xor
        const u32 p = *row<u32>(w, in, 4);
        bits = in.flags == 1 ? bits & p : in.flags == 2 ? bits | p : bits ^ p;
        other = in.flags == 1 ? other & p : in.flags == 2 ? other | p : other ^ p;
    }
    blend_predicate(row<u32>(w, in, 0), bits, m);
    blend_predicate(row<u32>(w, in, 1), other, m);
}

template <class D, class A, class F>
void add1(std::string name, F) {
    add(name, unary<D, A, F, 32>);
}

template <class D, class A, class B, class F>
void add2(std::string name, F) {
    add(name, binary<D, A, B, F, 32>);
}

template <class D, class A, class B, class C, class F>
void add3(std::string name, F) {
    add(name, ternary<D, A, B, C, F, 32>);
}

template <class T>
void comparisons(std::string t) {
    auto one = [&](std::string name, auto f) { add("setp." + name + "." + t, compare<T, decltype(f)>); };
    one("eq", [](T a, T b) { return a == b; });
    one("ne", [](T a, T b) { return a != b && a == a && b == b; });
    one("lt", [](T a, T b) { return a < b; });
    one("le", [](T a, T b) { return a <= b; });
    one("gt", [](T a, T b) { return a > b; });
    one("ge", [](T a, T b) { return a >= b; });
    if constexpr (std::is_integral_v<T>) {
        one("lo", [](T a, T b) { return a < b; });
        one("ls", [](T a, T b) { return a <= b; });
        one("hi", [](T a, T b) { return a > b; });
        one("hs", [](T a, T b) { return a >= b; });
    } else {
        one("equ", [](T a, T b) { return a == b || a != a || b != b; });
        one("neu", [](T a, T b) { return !(a == b); });
        one("ltu", [](T a, T b) { return !(a >= b); });
        one("leu", [](T a, T b) { return !(a > b); });
        one("gtu", [](T a, T b) { return !(a <= b); });
        one("geu", [](T a, T b) { return !(a < b); });
        one("num", [](T a, T b) { return a == a && b == b; });
        one("nan", [](T a, T b) { return a != a || b != b; });
    }
}
