// What all parts of the machine share: what Python hands over, the state of a block, the findings.
//
// The machine is a CPU that runs PTX: the thread blocks of a grid one after another, the warps of a block in a random
// order between barriers, the 32 threads (lanes) of a warp in lockstep. Every access to memory is checked.
//
// A warp's registers lie in its "file": a row of 32 values for each 16-, 32- or 64-bit register and constant, one
// 32-bit mask for each predicate. An operand is the place of its row and the bytes a lane has there (0: predicate).
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f16 = _Float16;

struct bf16 {
    u16 bits;
    bf16() = default;
    bf16(float x) {
        u32 b;
        memcpy(&b, &x, 4);
        bits = x != x ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
    }
    operator float() const {
        u32 b = u32(bits) << 16;
        float x;
        memcpy(&x, &b, 4);
        return x;
    }
};

// What Python hands over; launch.py has its mirror.

struct Operand {
    s32 at, width;
};

// `guard`: place of the predicate that says which lanes take part, -1 for all. The other fields are the instruction's
// own.
struct Inst {
    s32 op, guard, negated, first, count, n, size, flags, target, space;
    s64 imm;
};

// What is known of a few bytes ("granule") of memory: who wrote and who read them last.
struct Cell {
    s32 write_block, read_block, atomic_block;  // block that wrote / read / did so atomically (0 none, -1 several)
    s32 write_inst, read_inst;                  // with which instruction
    u32 write_epoch, read_epoch;                // between which barriers
    u32 write_tick, readers;  // between which syncs of the writing warp; warps that read since the last barrier
    u8 write_warp, write_lane, atomic, pending;
};

static_assert(sizeof(Cell) == 40);

// Memory of the launch's arguments. `valid`: which bytes belong to an element, null for all.
struct Region {
    s64 base, size;
    u8 *host, *valid;
    Cell* cells;
};

struct Finding {
    s32 kind, inst, other, block, warp, lane, region, bytes;
    s64 address, count;
};

struct Launch {
    const Inst* code;
    const Operand* operands;
    const u8* image;
    s64 file_bytes, registers_at;  // a file as it starts: constants, then registers
    const u8* params;
    Region* regions;
    s64 n_regions;
    s64 shared_bytes, shared_granule, global_granule;
    s64 threads, grid[3];
    s64 specials[14];  // places of the special registers
    s64 seed, max_steps, steps;
    Finding* findings;
    s64 max_findings, n_findings;
};

// As findings.py words them.
enum Kind {
    OUTSIDE,
    GAP,
    MISALIGNED,
    SHARED_OUTSIDE,
    UNWRITTEN,
    RACE,
    WARP_RACE,
    BLOCK_RACE,
    IN_FLIGHT,
    DIVERGED,
    ENDLESS,
    COPIES
};

enum Access { READ, WRITE, ATOMIC };
enum Space { GLOBAL, SHARED, PARAM };
constexpr int REGION_BITS = 40;

// A cp.async under way.
struct Copy {
    s64 to;
    int bytes, lane;
    const Inst* inst;
    u8 data[16];
};

// Lanes at an instruction, up to the one where they meet those below again.
struct Path {
    int pc, until;
    u32 lanes;
};

struct Block;
struct Warp {
    std::vector<u8> file;
    int id;
    u32 active, live, tick;
    std::vector<Path> paths;                // diverged lanes wait below those that run
    std::vector<std::vector<Copy>> groups;  // cp.async: committed groups, the last one still open
    Block* block;
};

struct Block {
    Launch* launch;
    s32 id;
    u32 epoch;
    s64 index[3];
    std::vector<Warp> warps;
    std::vector<u8> shared;
    std::vector<Cell> cells;
};
