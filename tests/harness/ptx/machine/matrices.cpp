// Tensor cores, and the loads and stores of their operands.

#include "rounding.h"
#include "rows.h"

// Eight rows of 16 bytes a matrix; the address of row r of matrix j is lane 8 j + r's. flags: 1 transposed.
static void ldmatrix(Warp& w, const Inst& in, u32 m) {
    whole(w, in, m, ~0u);
    u16 tile[4][8][8];
    for (int i = 0; i < 8 * in.n; i++) {
        const u8* p = reach(w, in, i, SHARED, s64(u32(get(w, in, in.n, i))) + in.imm, 16, 16, READ, nullptr);
        if (p)
            memcpy(tile[i / 8][i % 8], p, 16);
        else
            memset(tile[i / 8][i % 8], 255, 16);
    }
    for (int j = 0; j < in.n; j++)
        for (int i = 0; i < 32; i++) {
            const int r = i / 4, c = i % 4 * 2;
            const u32 low = in.flags & 1 ? tile[j][c][r] : tile[j][r][c],
                      high = in.flags & 1 ? tile[j][c + 1][r] : tile[j][r][c + 1];
            put(w, in, j, i, low | high << 16);
        }
}

static void stmatrix(Warp& w, const Inst& in, u32 m) {
    whole(w, in, m, ~0u);
    u16 tile[4][8][8];
    for (int j = 0; j < in.n; j++)
        for (int i = 0; i < 32; i++) {
            const int r = i / 4, c = i % 4 * 2;
            const u32 x = get(w, in, 1 + j, i);
            (in.flags & 1 ? tile[j][c][r] : tile[j][r][c]) = x;
            (in.flags & 1 ? tile[j][c + 1][r] : tile[j][r][c + 1]) = x >> 16;
        }
    for (int i = 0; i < 8 * in.n; i++)
        if (u8* p = reach(w, in, i, SHARED, s64(u32(get(w, in, 0, i))) + in.imm, 16, 16, WRITE, tile[i / 8][i % 8]))
            memcpy(p, tile[i / 8][i % 8], 16);
}

// float32 without its low 13 bits.
struct tf32 {};

// The value of element e of a 32-bit register, of T.
template <class T>
double element(u64 x, int e) {
    if constexpr (std::is_same_v<T, tf32>) {
        u32 b = u32(x) & 0xffffe000;
        float f;
        memcpy(&f, &b, 4);
        return f;
    } else {
        u16 b = x >> 16 * e;
        T h;
        memcpy(&h, &b, 2);
        return float(h);
    }
}

// D (16 x 8) = A (16 x K) B (K x 8) + C. A register holds E neighbours along K; lane 4 g + t has rows g and g + 8, and
// columns from E t on, 4 E further a register pair. Tensor cores drop what float32 cannot hold: rounded to zero.
template <class T, class C, int K>
void mma(Warp& w, const Inst& in, u32 m) {
    whole(w, in, m, ~0u);
    constexpr int E = std::is_same_v<T, tf32> ? 1 : 2;
    constexpr int M = 16, halves = M / 8, steps = K / (4 * E), ND = std::is_same_v<C, f16> ? halves : 2 * halves;
    double a[M][K], b[K][8], d[M][8];
    for (int i = 0; i < 32; i++) {
        const int g = i / 4, t = i % 4;
        for (int k = 0; k < steps; k++)
            for (int e = 0; e < E; e++) {
                for (int h = 0; h < halves; h++)
                    a[g + 8 * h][4 * E * k + E * t + e] = element<T>(get(w, in, ND + halves * k + h, i), e);
                b[4 * E * k + E * t + e][g] = element<T>(get(w, in, ND + halves * steps + k, i), e);
            }
        for (int h = 0; h < halves; h++)
            for (int e = 0; e < 2; e++) {
                const int at = ND + halves * steps + steps;
                if constexpr (std::is_same_v<C, f16>)
                    d[g + 8 * h][2 * t + e] = element<f16>(get(w, in, at + h, i), e);
                else
                    d[g + 8 * h][2 * t + e] = row<float>(w, in, at + 2 * h + e)[i];
            }
    }
    for (int r = 0; r < M; r++)
        for (int k = 0; k < K; k++)
            for (int c = 0; c < 8; c++) d[r][c] += a[r][k] * b[k][c];
    for (int i = 0; i < 32; i++)
        for (int h = 0; h < halves; h++) {
            const int g = i / 4 + 8 * h, t = i % 4 * 2;
            if constexpr (std::is_same_v<C, f16>) {
                const f16 x[2] = {f16(d[g][t]), f16(d[g][t + 1])};
                u32 both;
                memcpy(&both, x, 4);
                put(w, in, h, i, both);
            } else
                for (int e = 0; e < 2; e++) row<float>(w, in, 2 * h + e)[i] = narrow<float>(d[g][t + e], ZERO);
        }
}

// wgmma: D (64 x N) in the registers of four warps, 16 rows each; B, and A unless in registers, in shared memory, as
// descriptors say. Operands: D, A (four registers or a descriptor), B's descriptor, the predicate that keeps D.
// flags: 1 A in registers, 2 A transposed, 4 B transposed, 8 minus A, 16 minus B.
static s64 tile_address(u64 descriptor, bool transposed, int size, int outer, int k) {
    const s64 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
              stride = (descriptor >> 32 & 0x3fff) << 4;
    const int swizzle = descriptor >> 62;                      // 0: none, 1: 128, 2: 64, 3: 32 bytes
    const int row_bytes = swizzle == 0 ? 16 : 256 >> swizzle;  // of the 8-row atom
    s64 offset;
    if (!transposed) {  // K is contiguous: atoms of 8 outer by row_bytes of K
        const int at = k * size;
        offset = outer / 8 * stride + outer % 8 * row_bytes + at % row_bytes;
        if (at >= row_bytes) offset += at / row_bytes * leading;
    } else {  // outer is contiguous: atoms of 8 K by row_bytes of outer
        const int at = outer * size;
        offset = k / 8 * stride + k % 8 * row_bytes + at % row_bytes + at / row_bytes * leading;
        if (swizzle == 0) offset = k / 8 * leading + k % 8 * 16 + at % 16 + at / 16 * stride;
    }
    s64 at = start + offset;
    if (swizzle) at ^= (at >> 7 & ((row_bytes >> 4) - 1)) << 4;
    return at;
}

template <class T>
void wgmma(Warp& w, const Inst& in, u32 m) {
    whole(w, in, m, ~0u);
    constexpr int size = std::is_same_v<T, tf32> ? 4 : sizeof(T), K = 32 / size, E = 4 / size;
    const int N = in.n, nd = N / 2, first = nd + (in.flags & 1 ? 4 : 1);
    const bool keep = *row<u32>(w, in, first + 1) & 1;
    const double sign = (in.flags >> 3 & 1) != (in.flags >> 4 & 1) ? -1 : 1;
    std::vector<double> a(16 * K), b(K * N), d(16 * N);
    auto fetch = [&](u64 descriptor, bool transposed, int outer, int k, int lane) {
        const s64 at = tile_address(descriptor, transposed, size, outer, k);
        const u8* p = reach(w, in, lane, SHARED, at, size, size, READ, nullptr);
        u64 x = ~0ull;
        if (p) memcpy(&x, p, size);
        return element<T>(x, 0);
    };
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < K; k++)
            if (in.flags & 1) {
                const int lane = r % 8 * 4 + k / E % 4;
                a[r * K + k] = element<T>(get(w, in, nd + k / (4 * E) * 2 + r / 8, lane), k % E);
            } else
                a[r * K + k] = fetch(get(w, in, nd, 0), in.flags & 2, w.id % 4 * 16 + r, k, 0);
    for (int k = 0; k < K; k++)
        for (int c = 0; c < N; c++) b[k * N + c] = fetch(get(w, in, first, 0), in.flags & 4, c, k, 0);
    auto each = [&](auto f) {
        for (int i = 0; i < 32; i++)
            for (int j = 0; j < nd; j++) f(i, j, (i / 4 + j / 2 % 2 * 8) * N + j / 4 * 8 + i % 4 * 2 + j % 2);
    };
    if (keep) each([&](int i, int j, int at) { d[at] = row<float>(w, in, j)[i]; });
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < K; k++)
            for (int c = 0; c < N; c++) d[r * N + c] += sign * a[r * K + k] * b[k * N + c];
    each([&](int i, int j, int at) { row<float>(w, in, j)[i] = narrow<float>(d[at], ZERO); });
}

void add_matrices() {
    add("ldmatrix", ldmatrix);
    add("stmatrix", stmatrix);
    add("mma.m16n8k8.f32.tf32.tf32.f32", mma<tf32, float, 8>);
    add("mma.m16n8k4.f32.tf32.tf32.f32", mma<tf32, float, 4>);
    add("mma.m16n8k16.f32.f16.f16.f32", mma<f16, float, 16>);
    add("mma.m16n8k8.f32.f16.f16.f32", mma<f16, float, 8>);
    add("mma.m16n8k16.f16.f16.f16.f16", mma<f16, f16, 16>);
    add("mma.m16n8k16.f32.bf16.bf16.f32", mma<bf16, float, 16>);
    add("mma.m16n8k8.f32.bf16.bf16.f32", mma<bf16, float, 8>);
    add("wgmma.f16", wgmma<f16>);
    add("wgmma.bf16", wgmma<bf16>);
    add("wgmma.tf32", wgmma<tf32>);
}
