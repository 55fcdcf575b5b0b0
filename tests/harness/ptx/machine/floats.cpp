// Floating point arithmetic.

#include <algorithm>

#include "rounding.h"
#include "rows.h"

template <class F>
struct Flushed {
    float operator()(float a) const {
        return flush(F()(flush(a)));
    }
    float operator()(float a, float b) const {
        return flush(F()(flush(a), flush(b)));
    }
    float operator()(float a, float b, float c) const {
        return flush(F()(flush(a), flush(b), flush(c)));
    }
};

// Registers a function of one to three values of T, packed pairs too where T has 16 bits, and with .ftz.
template <class T, class F>
void floating(std::string name, std::string t, F) {
    auto each = [&](std::string full, auto f, auto count) {
        using G = decltype(f);
        constexpr int N = decltype(count)::value;
        if constexpr (std::is_invocable_v<F, T, T, T>)
            add(full, ternary<T, T, T, T, G, N>);
        else if constexpr (std::is_invocable_v<F, T, T>)
            add(full, binary<T, T, T, G, N>);
        else
            add(full, unary<T, T, G, N>);
    };
    each(name + "." + t, F(), std::integral_constant<int, 32>());
    if constexpr (sizeof(T) == 2) each(name + "." + t + "x2", F(), std::integral_constant<int, 64>());
    if constexpr (std::is_same_v<T, f16>) {
        each(name + ".ftz." + t, F(), std::integral_constant<int, 32>());
        each(name + ".ftz." + t + "x2", F(), std::integral_constant<int, 64>());
    }
    if constexpr (std::is_same_v<T, float>) {
        each(name + ".ftz." + t, Flushed<F>(), std::integral_constant<int, 32>());
        each(name + "." + t + "x2", F(), std::integral_constant<int, 64>());
    }
}

template <class T>
void floats(std::string t) {
    using W = std::conditional_t<sizeof(T) == 2, float, T>;
    floating<T>("add", t, [](T a, T b) { return T(W(a) + W(b)); });
    floating<T>("sub", t, [](T a, T b) { return T(W(a) - W(b)); });
    floating<T>("mul", t, [](T a, T b) { return T(W(a) * W(b)); });
    floating<T>("fma", t, [](T a, T b, T c) { return T(std::fma(W(a), W(b), W(c))); });
    floating<T>("min", t, [](T a, T b) { return T(lower(W(a), W(b))); });
    floating<T>("max", t, [](T a, T b) { return T(higher(W(a), W(b))); });
    floating<T>("min.NaN", t, [](T a, T b) { return a != a || b != b ? T(NAN) : T(lower(W(a), W(b))); });
    floating<T>("max.NaN", t, [](T a, T b) { return a != a || b != b ? T(NAN) : T(higher(W(a), W(b))); });
    floating<T>("abs", t, [](T a) { return T(std::fabs(W(a))); });
    floating<T>("neg", t, [](T a) { return T(-W(a)); });
    floating<T>("ex2", t, [](T a) { return T(std::exp2(W(a))); });
    floating<T>("lg2", t, [](T a) { return T(std::log2(W(a))); });
    floating<T>("tanh", t, [](T a) { return T(std::tanh(W(a))); });
    comparisons<T>(t);
    if constexpr (sizeof(T) >= 4) {
        floating<T>("div", t, [](T a, T b) { return T(a / b); });
        floating<T>("rcp", t, [](T a) { return T(1) / a; });
        floating<T>("sqrt", t, [](T a) { return std::sqrt(a); });
        floating<T>("rsqrt", t, [](T a) { return T(1) / std::sqrt(a); });
        floating<T>("sin", t, [](T a) { return std::sin(a); });
        floating<T>("cos", t, [](T a) { return std::cos(a); });
        floating<T>("copysign", t, [](T a, T b) { return std::copysign(b, a); });
        if constexpr (std::is_same_v<T, double>) {  // approximations that the code refines
            floating<T>("rcp.ftz", t, [](T a) { return T(1) / a; });
            floating<T>("rsqrt.ftz", t, [](T a) { return T(1) / std::sqrt(a); });
        }
        if constexpr (std::is_same_v<T, float>)
            floating<T>("fma.sat", t, [](T a, T b, T c) {
                T x = std::fma(a, b, c);
                return x > 0 ? std::min(x, 1.0f) : 0.0f;
            });
    }
}

void add_floats() {
    floats<float>("f32");
    floats<double>("f64");
    floats<f16>("f16");
    floats<bf16>("bf16");
}
