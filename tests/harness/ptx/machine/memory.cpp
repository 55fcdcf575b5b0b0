// Loads, stores, atomics, and copies that arrive later.

#include <algorithm>

#include "rounding.h"
#include "rows.h"

// Operands: registers, then the address; st has them the other way round.
static void load(Warp& w, const Inst& in, u32 m) {
    const int bytes = in.size * in.n;
    for (int i = 0; i < 32; i++) {
        if (!(m >> i & 1)) continue;
        const s64 at = get(w, in, in.n, i) + in.imm;
        const u8* p = in.space == PARAM ? w.block->launch->params + at
                                        : reach(w, in, i, Space(in.space), at, bytes, bytes, READ, nullptr);
        for (int j = 0; j < in.n; j++) {
            u64 x = ~0ull;
            if (p) {
                memcpy(&x, p + j * in.size, in.size);
                x = extend(x, in.size, in.flags & 1);
            }
            put(w, in, j, i, x);
        }
    }
}

static void store(Warp& w, const Inst& in, u32 m) {
    const int bytes = in.size * in.n;
    u8 value[64];
    for (int i = 0; i < 32; i++)
        if (m >> i & 1) {
            for (int j = 0; j < in.n; j++) {
                const u64 x = get(w, in, 1 + j, i);
                memcpy(value + j * in.size, &x, in.size);
            }
            if (u8* p = reach(w, in, i, Space(in.space), get(w, in, 0, i) + in.imm, bytes, bytes, WRITE, value))
                memcpy(p, value, bytes);
        }
}

// d, [a], values: the old value comes back where there is a d (flags & 1).
template <class T, class F>
void atomic(Warp& w, const Inst& in, u32 m) {
    const int a = in.flags & 1;
    for (int i = 0; i < 32; i++)
        if (m >> i & 1) {
            const s64 at = get(w, in, a, i) + in.imm;
            for (int j = 0; j < in.n; j++) {
                T b, c{}, old, next;
                memcpy(&b, &w.file[operand(w, in, a + 1 + j).at + i * sizeof(T)], sizeof b);
                if (in.count > a + 1 + in.n)
                    memcpy(&c, &w.file[operand(w, in, a + 2 + j).at + i * sizeof(T)], sizeof c);
                const Place p =
                    locate(w, in, i, Space(in.space), at + j * sizeof(T), sizeof(T), j ? sizeof(T) : sizeof(T) * in.n);
                if (!p.host) continue;
                memcpy(&old, p.host, sizeof old);
                next = F()(old, b, c);
                note(w, in, i, p.cells, p.n, ATOMIC, memcmp(&old, &next, sizeof old), p.at, sizeof(T), p.region);
                memcpy(p.host, &next, sizeof next);
                if (a) memcpy(&w.file[operand(w, in, 0).at + i * sizeof(T)], &old, sizeof old);
            }
        }
}

template <class T>
void atomics(std::string t) {
    auto one = [&](std::string name, auto f) { add("atom." + name + "." + t, atomic<T, decltype(f)>); };
    if constexpr (std::is_integral_v<T>) {
        using U = std::make_unsigned_t<T>;
        one("add", [](T a, T b, T) { return T(U(a) + U(b)); });
        one("and", [](T a, T b, T) { return T(a & b); });
        one("or", [](T a, T b, T) { return T(a | b); });
        one("xor", [](T a, T b, T) { return T(a ^ b); });
        one("exch", [](T, T b, T) { return b; });
        one("cas", [](T a, T b, T c) { return a == b ? c : a; });
        one("inc", [](T a, T b, T) { return a >= b ? T(0) : T(a + 1); });
        one("dec", [](T a, T b, T) { return a == 0 || a > b ? b : T(a - 1); });
        one("min", [](T a, T b, T) { return std::min(a, b); });
        one("max", [](T a, T b, T) { return std::max(a, b); });
    } else {
        one("add", [](T a, T b, T) { return T(a + b); });
        one("min", [](T a, T b, T) { return T(lower<float>(a, b)); });
        one("max", [](T a, T b, T) { return T(higher<float>(a, b)); });
    }
}

// cp.async [shared], [global], size, source size: the data arrive only when the group is waited for.
static void copy_async(Warp& w, const Inst& in, u32 m) {
    for (int i = 0; i < 32; i++)
        if (m >> i & 1) {
            Copy c{s64(get(w, in, 0, i) + in.imm), in.size, i, &in, {}};
            const int bytes = in.count > 2 ? std::min<int>(get(w, in, 2, i), in.size) : in.size;
            // in.target: the offset of the second address
            if (bytes > 0) {
                if (const u8* p = reach(w, in, i, GLOBAL, get(w, in, 1, i) + in.target, bytes, in.size, READ, nullptr))
                    memcpy(c.data, p, bytes);
                else
                    memset(c.data, 255, sizeof c.data);
            }
            if (!reach(w, in, i, SHARED, c.to, in.size, in.size, WRITE, c.data)) continue;
            const int g = w.block->launch->shared_granule;
            for (int k = 0; k < std::max(1, in.size / g); k++) w.block->cells[c.to / g + k].pending = 1;
            w.groups.back().push_back(c);
        }
}

static void finish(Warp& w, std::vector<Copy>& group) {
    const int g = w.block->launch->shared_granule;
    for (const Copy& c : group) {
        for (int k = 0; k < std::max(1, c.bytes / g); k++) {
            Cell& cell = w.block->cells[c.to / g + k];
            cell.pending = 0;
            cell.write_block = w.block->id;
            cell.write_epoch = w.block->epoch;
            cell.write_tick = w.tick;
            cell.write_warp = w.id;
            cell.write_lane = c.lane;
            cell.write_inst = c.inst - w.block->launch->code;
        }
        memcpy(&w.block->shared[c.to], c.data, c.bytes);
    }
    group.clear();
}

static void commit(Warp& w, const Inst&, u32) {
    w.groups.emplace_back();
}

static void wait_group(Warp& w, const Inst& in, u32) {  // all but the last imm committed groups (-1: the open one too)
    const s64 keep = in.imm + 1;
    while (s64(w.groups.size()) > keep) {
        finish(w, w.groups.front());
        w.groups.erase(w.groups.begin());
    }
    if (w.groups.empty()) w.groups.emplace_back();
}

void add_memory() {
    add("ld", load);
    add("st", store);
    atomics<u32>("u32");
    atomics<s32>("s32");
    atomics<u32>("b32");
    atomics<u64>("u64");
    atomics<s64>("s64");
    atomics<u64>("b64");
    atomics<u16>("b16");
    atomics<float>("f32");
    atomics<double>("f64");
    atomics<f16>("f16");
    atomics<bf16>("bf16");
    add("cp.async", copy_async);
    add("cp.async.commit_group", commit);
    add("cp.async.wait_group", wait_group);
}
