// What the lanes of a warp do with each other.

#include <algorithm>

#include "rows.h"

enum { UPWARDS, DOWNWARDS, BUTTERFLY, INDEX };
static void shuffle(Warp& w, const Inst& in, u32 m) {  // d|p, a, b, c, members
    u32 t[32], valid = 0;
    const u32 *a = row<u32>(w, in, 2), *b = row<u32>(w, in, 3), *c = row<u32>(w, in, 4);
    whole(w, in, m, row<u32>(w, in, 5)[0]);
    for (int i = 0; i < 32; i++) {
        const int by = b[i] & 31, clamp = c[i] & 31, segment = c[i] >> 8 & 31;
        const int high = (i & segment) | (clamp & ~segment), low = i & segment;
        int j = 0;
        bool ok = true;
        switch (in.flags) {
            case UPWARDS:
                j = i - by;
                ok = j >= high;
                break;
            case DOWNWARDS:
                j = i + by;
                ok = j <= high;
                break;
            case BUTTERFLY:
                j = i ^ by;
                ok = j <= high;
                break;
            case INDEX:
                j = low | (by & ~segment);
                ok = j <= high;
                break;
        }
        if (!ok) j = i;
        t[i] = m >> j & 1 ? a[j] : ~0u;
        valid |= u32(ok) << i;
    }
    blend(row<u32>(w, in, 0), t, m);
    blend_predicate(row<u32>(w, in, 1), valid, m);
}

template <class T, class F>
void reduce(Warp& w, const Inst& in, u32 m) {
    const u32 members = row<u32>(w, in, 2)[0];
    whole(w, in, m, members);
    const T* a = row<T>(w, in, 1);
    T x{};
    bool first = true;
    for (int i = 0; i < 32; i++)
        if (m & members & (1u << i)) {
            x = first ? a[i] : F()(x, a[i]);
            first = false;
        }
    T t[32];
    std::fill(t, t + 32, x);
    blend(row<T>(w, in, 0), t, m);
}

template <class T, class F>
void redux(std::string name, F) {
    add("redux." + name, reduce<T, F>);
}

static void vote(Warp& w, const Inst& in, u32 m) {  // d, p, members; flags: 0 any, 1 all, 2 uni, 3 ballot
    const u32 members = row<u32>(w, in, 2)[0], yes = *row<u32>(w, in, 1) & members & m;
    whole(w, in, m, members);
    if (in.flags == 3) {
        u32 t[32];
        std::fill(t, t + 32, yes);
        blend(row<u32>(w, in, 0), t, m);
        return;
    }
    const bool all = yes == (members & m);
    blend_predicate(row<u32>(w, in, 0), (in.flags == 0 ? yes != 0 : in.flags == 1 ? all : all || !yes) ? ~0u : 0, m);
}

static void sync_warp(Warp& w, const Inst& in, u32 m) {
    whole(w, in, m, row<u32>(w, in, 0)[0]);
    w.tick++;
}

static void elect(Warp& w, const Inst& in, u32 m) {  // d|p, members
    const u32 leader = __builtin_ctz(m);
    u32 t[32];
    std::fill(t, t + 32, leader);
    blend(row<u32>(w, in, 0), t, m);
    blend_predicate(row<u32>(w, in, 1), 1u << leader, m);
}

void add_lanes() {
    add("shfl", shuffle);
    add("vote", vote);
    add("bar.warp", sync_warp);
    add("elect", elect);
    redux<s32>("add.s32", [](s32 a, s32 b) { return s32(u32(a) + u32(b)); });
    redux<u32>("add.u32", [](u32 a, u32 b) { return a + b; });
    redux<s32>("min.s32", [](s32 a, s32 b) { return std::min(a, b); });
    redux<u32>("min.u32", [](u32 a, u32 b) { return std::min(a, b); });
    redux<s32>("max.s32", [](s32 a, s32 b) { return std::max(a, b); });
    redux<u32>("max.u32", [](u32 a, u32 b) { return std::max(a, b); });
    redux<u32>("and.b32", [](u32 a, u32 b) { return a & b; });
    redux<u32>("or.b32", [](u32 a, u32 b) { return a | b; });
    redux<u32>("xor.b32", [](u32 a, u32 b) { return a ^ b; });
}
