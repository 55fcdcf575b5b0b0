// Checked access to global and shared memory.
#pragma once

#include "state.h"

// Adds a finding, or counts it where the same instruction had the same one before.
void report(Warp& w, const Inst& in, int kind, int lane, s64 address, int bytes, int region, int other = -1);

// Where an access goes: host memory (null where it may not go), and what is known of it.
struct Place {
    u8* host;
    Cell* cells;
    int n;
    s64 at;
    int region;
};

Place locate(Warp& w, const Inst& in, int lane, Space space, s64 at, int bytes, int align);

// Judges an access to n cells, and notes it. `changed`: whether a write changes what is there (threads that hold copies
// of a value may all write it).
void note(Warp& w, const Inst& in, int lane, Cell* c, int n, Access access, bool changed, s64 at, int bytes,
          int region);

// Both. `value`: what a write would put there.
u8* reach(Warp& w, const Inst& in, int lane, Space space, s64 at, int bytes, int align, Access access,
          const void* value);

// Reports it where not all members of a warp arrive at an instruction that they carry out together.
void whole(Warp& w, const Inst& in, u32 arrived, u32 members);
