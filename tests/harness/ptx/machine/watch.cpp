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

void note(Warp& w, const Inst& in, int lane, Cell* c, int n, Access access, bool changed, s64 at, int bytes,
          int region) {
    Block& b = *w.block;
    const bool shared = region < 0;
    for (int i = 0; i < n; i++, c++) {
        if (c->pending) report(w, in, IN_FLIGHT, lane, at, bytes, region, c->write_inst);
        const bool mine = c->write_block == b.id, now = mine && c->write_epoch == b.epoch;
        if (access == ATOMIC)
            c->atomic_block = c->atomic_block == 0 || c->atomic_block == b.id ? b.id : -1;
        else if (!shared && c->atomic_block && c->atomic_block != b.id && (access == READ || changed))
            report(w, in, BLOCK_RACE, lane, at, bytes, region);
        if (access == READ) {
            if (shared && !mine && !c->pending) report(w, in, UNWRITTEN, lane, at, bytes, region);
            if (!shared && c->write_block && !mine) report(w, in, BLOCK_RACE, lane, at, bytes, region, c->write_inst);
            if (now && c->write_warp != w.id) report(w, in, RACE, lane, at, bytes, region, c->write_inst);
            if (now && c->write_warp == w.id && c->write_lane != lane && c->write_tick == w.tick)
                report(w, in, WARP_RACE, lane, at, bytes, region, c->write_inst);
            c->read_block = c->read_block == 0 || c->read_block == b.id || shared ? b.id : -1;
            if (c->read_epoch != b.epoch) {
                c->read_epoch = b.epoch;
                c->readers = 0;
            }
            c->readers |= 1u << w.id;
            c->read_inst = &in - b.launch->code;
        } else {
            if (shared && !mine) changed = true;
            if (changed && !(access == ATOMIC && c->atomic && c->write_block)) {
                if (!shared && c->write_block && !mine)
                    report(w, in, BLOCK_RACE, lane, at, bytes, region, c->write_inst);
                // The same store of the same place in shared memory: threads hold copies of one value, which differ.
                const bool copies = shared && c->write_inst == &in - b.launch->code;
                if (now && c->write_warp != w.id)
                    report(w, in, copies ? COPIES : RACE, lane, at, bytes, region, c->write_inst);
                if (now && c->write_warp == w.id && c->write_lane != lane && c->write_tick == w.tick)
                    report(w, in, copies ? COPIES : WARP_RACE, lane, at, bytes, region, c->write_inst);
            }
            if (changed && !shared && c->read_block && c->read_block != b.id)
                report(w, in, BLOCK_RACE, lane, at, bytes, region, c->read_inst);
            if (changed && c->read_epoch == b.epoch && c->readers & ~(1u << w.id))
                report(w, in, RACE, lane, at, bytes, region, c->read_inst);
            if (changed || !now) {
                c->write_block = b.id;
                c->write_epoch = b.epoch;
                c->write_tick = w.tick;
                c->write_warp = w.id;
                c->write_lane = lane;
                c->write_inst = &in - b.launch->code;
                c->atomic = access == ATOMIC;
            }
        }
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
