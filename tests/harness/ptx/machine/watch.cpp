// What an access to memory may do wrong, and who touched a place before.

#include "watch.h"

#include <algorithm>

void report(Warp& w, const Inst& in, int kind, int lane, s64 address, int bytes, int region, int other) {
    Launch& l = *w.block->launch;
    s32 inst = &in - l.code;
    for (s64 i = 0; i < l.n_findings; i++) {
        Finding& f = l.findings[i];
        if (f.kind == kind && f.inst == inst && f.other == other) {
            f.count++;
            return;
        }
    }
    if (l.n_findings < l.max_findings)
        l.findings[l.n_findings++] = {kind, inst, other, w.block->id - 1, w.id, lane, region, bytes, address, 1};
}

namespace {

// An access of a lane, as findings name it.
struct Touch {
    Warp& w;
    const Inst& in;
    int lane;
    s64 at;
    int bytes, region;

    bool shared() const {
        return region < 0;
    }
    s32 block() const {
        return w.block->id;
    }
    u32 epoch() const {
        return w.block->epoch;
    }
    s32 inst() const {
        return &in - w.block->launch->code;
    }
    void wrong(int kind, int other = -1) const {
        report(w, in, kind, lane, at, bytes, region, other);
    }
};

// What this block wrote since its last barrier, no other warp may touch; nor another lane since the warp's last sync.
void judge_order(const Touch& t, const Cell& c, int between_warps, int between_lanes) {
    if (c.write_block != t.block() || c.write_epoch != t.epoch()) return;
    if (c.write_warp != t.w.id)
        t.wrong(between_warps, c.write_inst);
    else if (c.write_lane != t.lane && c.write_tick == t.w.tick)
        t.wrong(between_lanes, c.write_inst);
}

void note_read(const Touch& t, Cell& c) {
    const bool mine = c.write_block == t.block();
    if (t.shared() && !mine && !c.pending) t.wrong(UNWRITTEN);
    if (!t.shared() && c.write_block && !mine) t.wrong(BLOCK_RACE, c.write_inst);
    judge_order(t, c, RACE, WARP_RACE);

    const bool alone = t.shared() || c.read_block == 0 || c.read_block == t.block();
    c.read_block = alone ? t.block() : -1;
    if (c.read_epoch != t.epoch()) {
        c.read_epoch = t.epoch();
        c.readers = 0;
    }
    c.readers |= 1u << t.w.id;
    c.read_inst = t.inst();
}

void note_write(const Touch& t, Cell& c, bool changed, bool atomic) {
    const bool mine = c.write_block == t.block();
    if (t.shared() && !mine) changed = true;  // the block's first write
    if (!changed && mine && c.write_epoch == t.epoch()) return;

    const bool among_atomics = atomic && c.atomic && c.write_block;
    if (changed && !among_atomics) {
        if (!t.shared() && c.write_block && !mine) t.wrong(BLOCK_RACE, c.write_inst);
        // The same store of the same place in shared memory: threads hold copies of one value, which differ.
        const bool copies = t.shared() && c.write_inst == t.inst();
        judge_order(t, c, copies ? COPIES : RACE, copies ? COPIES : WARP_RACE);
    }
    if (changed && !t.shared() && c.read_block && c.read_block != t.block()) t.wrong(BLOCK_RACE, c.read_inst);
    const bool read_by_others = c.read_epoch == t.epoch() && c.readers & ~(1u << t.w.id);
    if (changed && read_by_others) t.wrong(RACE, c.read_inst);

    c.write_block = t.block();
    c.write_epoch = t.epoch();
    c.write_tick = t.w.tick;
    c.write_warp = t.w.id;
    c.write_lane = t.lane;
    c.write_inst = t.inst();
    c.atomic = atomic;
}

}  // namespace

void note(Warp& w, const Inst& in, int lane, Cell* cells, int n, Access access, bool changed, s64 at, int bytes,
          int region) {
    const Touch t{w, in, lane, at, bytes, region};
    for (Cell* c = cells; c < cells + n; c++) {
        if (c->pending) t.wrong(IN_FLIGHT, c->write_inst);
        if (access == ATOMIC)
            c->atomic_block = c->atomic_block == 0 || c->atomic_block == t.block() ? t.block() : -1;
        else if (!t.shared() && c->atomic_block && c->atomic_block != t.block() && (access == READ || changed))
            t.wrong(BLOCK_RACE);

        if (access == READ)
            note_read(t, *c);
        else
            note_write(t, *c, changed, access == ATOMIC);
    }
}

Place locate(Warp& w, const Inst& in, int lane, Space space, s64 at, int bytes, int align) {
    Launch& l = *w.block->launch;
    if (space == SHARED) {
        if (at < 0 || at + bytes > l.shared_bytes) {
            report(w, in, SHARED_OUTSIDE, lane, at, bytes, -1);
            return {};
        }
        if (at % align) {
            report(w, in, MISALIGNED, lane, at, align, -1);
            return {};
        }
        const int g = l.shared_granule;
        return {&w.block->shared[at], &w.block->cells[at / g], std::max(1, bytes / g), at, -1};
    }
    const s64 index = (at >> REGION_BITS) - 1;
    if (index < 0 || index >= l.n_regions) {
        report(w, in, OUTSIDE, lane, at, bytes, -1);
        return {};
    }
    const Region& r = l.regions[index];
    const s64 offset = at - r.base;
    if (offset < 0 || offset + bytes > r.size) {
        report(w, in, OUTSIDE, lane, offset, bytes, index);
        return {};
    }
    if (at % align) {
        report(w, in, MISALIGNED, lane, offset, align, index);
        return {};
    }
    if (r.valid && memchr(r.valid + offset, 0, bytes)) report(w, in, GAP, lane, offset, bytes, index);
    const int g = l.global_granule;
    return {r.host + offset, r.cells + (offset + (r.base & (g - 1))) / g, std::max(1, bytes / g), offset, int(index)};
}

u8* reach(Warp& w, const Inst& in, int lane, Space space, s64 at, int bytes, int align, Access access,
          const void* value) {
    const Place p = locate(w, in, lane, space, at, bytes, align);
    if (p.host) note(w, in, lane, p.cells, p.n, access, value && memcmp(p.host, value, bytes), p.at, bytes, p.region);
    return p.host;
}

void whole(Warp& w, const Inst& in, u32 arrived, u32 members) {
    const u32 missing = members & w.live & ~arrived;
    if (missing) report(w, in, DIVERGED, __builtin_ctz(missing), 0, 0, -1);
}
