// The order of things: blocks, warps, branches and barriers.

#include <algorithm>
#include <random>

#include "rows.h"

std::vector<Handler> handlers;
std::map<std::string, int> numbers;

// Instructions that steer a warp.
enum Control { BRANCH, EXIT, BARRIER, CONTROLS };

static void build() {
    auto nothing = [](Warp&, const Inst&, u32) {};
    handlers.assign(CONTROLS, nothing);
    numbers = {{"bra", BRANCH}, {"exit", EXIT}, {"bar", BARRIER}};
    add("nothing", nothing);
    add_integers();
    add_floats();
    add_conversions();
    add_memory();
    add_lanes();
    add_matrices();
}

// Lanes that diverge meet again where every way from the branch leads (in.imm, found by the parser; -1: at the end).
static void diverge(Warp& w, const Inst& in, u32 taken) {
    const Path here = w.paths.back();
    const int meet = in.imm < 0 ? INT32_MAX : in.imm;
    if (meet == here.until)
        w.paths.pop_back();
    else
        w.paths.back().pc = meet;
    w.paths.push_back({here.pc + 1, meet, w.active & ~taken});
    w.paths.push_back({in.target, meet, taken});
}

// Until the warp waits at a barrier (true) or is done (false).
static bool run(Warp& w) {
    Launch& l = *w.block->launch;
    while (!w.paths.empty()) {
        Path& path = w.paths.back();
        w.active = path.lanes & w.live;
        if (!w.active || path.pc == path.until) {
            w.paths.pop_back();
            continue;
        }
        const Inst& in = l.code[path.pc];
        u32 m = w.active;
        if (in.guard >= 0) {
            const u32 p = *reinterpret_cast<u32*>(&w.file[in.guard]);
            m &= in.negated ? ~p : p;
        }
        if (++l.steps > l.max_steps) {
            report(w, in, ENDLESS, 0, 0, 0, -1);
            return false;
        }
        switch (in.op) {
            case BRANCH:
                if (m == w.active)
                    path.pc = in.target;
                else if (m)
                    diverge(w, in, m);
                else
                    path.pc++;
                continue;
            case EXIT:
                w.live &= ~m;
                path.pc++;
                continue;
            case BARRIER:
                path.pc++;
                if (!m) continue;
                if (m != w.live) report(w, in, DIVERGED, __builtin_ctz(w.live & ~m), 0, 0, -1);
                return true;
            default:
                if (m) handlers[in.op](w, in, m);
                path.pc++;
        }
    }
    return false;
}

static void start(Warp& w) {
    Launch& l = *w.block->launch;
    memset(&w.file[l.registers_at], 255, l.file_bytes - l.registers_at);  // NaN, -1: what was never set
    const s64 left = l.threads - 32 * w.id;
    w.live = w.active = left >= 32 ? ~0u : (1u << left) - 1;
    w.paths.assign(1, {0, INT32_MAX, w.live});
    w.groups.assign(1, {});
    const s64 *s = l.specials, *b = w.block->index, *g = l.grid;
    for (int i = 0; i < 32; i++) {
        // thread, block, threads of a block, blocks of the grid, each in x, y and z; then lane and warp
        const s64 values[14] = {32 * w.id + i, 0, 0, b[0], b[1], b[2], l.threads, 1, 1, g[0], g[1], g[2], i, w.id};
        for (int k = 0; k < 14; k++) {
            const u32 value = values[k];
            memcpy(&w.file[s[k] + 4 * i], &value, 4);
        }
    }
}

extern "C" {

// The number of an instruction, -1 where it is not known.
int ptx_lookup(const char* name) {
    if (handlers.empty()) build();
    auto found = numbers.find(name);
    return found == numbers.end() ? -1 : found->second;
}

// A launch: every block once, in an order that the seed decides.
void ptx_run(Launch* l) {
    std::mt19937 random(l->seed);
    Block b{.launch = l};
    b.warps.resize((l->threads + 31) / 32);
    b.shared.resize(l->shared_bytes);
    b.cells.resize(l->shared_bytes / l->shared_granule + 1);
    for (size_t i = 0; i < b.warps.size(); i++) {
        b.warps[i].id = i;
        b.warps[i].block = &b;
        b.warps[i].tick = 0;
        b.warps[i].file.assign(l->image, l->image + l->file_bytes);
    }
    std::vector<s64> order(l->grid[0] * l->grid[1] * l->grid[2]);
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (s64 number : order) {
        b.id = number + 1;
        b.epoch++;
        b.index[0] = number % l->grid[0];
        b.index[1] = number / l->grid[0] % l->grid[1];
        b.index[2] = number / l->grid[0] / l->grid[1];
        std::fill(b.shared.begin(), b.shared.end(), 255);
        std::vector<Warp*> ready;
        for (Warp& w : b.warps) {
            start(w);
            ready.push_back(&w);
        }
        while (!ready.empty() && l->steps <= l->max_steps) {
            std::shuffle(ready.begin(), ready.end(), random);
            std::vector<Warp*> next;
            for (Warp* w : ready)
                if (run(*w)) next.push_back(w);
            for (Warp* w : next) w->tick++;
            ready = next;
            b.epoch++;
        }
        for (Cell& c : b.cells) c.pending = 0;
    }
}
}
