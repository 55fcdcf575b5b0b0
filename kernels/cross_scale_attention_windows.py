"""Where the tokens of a tile lie in their windows and their maps, and who sees whom: for the kernels of windowed
cross-scale attention, over maps and over volumes.

Row u of a rolled map is row u + shift, less the cycle where that is beyond it; window i of the query map is its rolled
rows [i WINDOW_Y, (i + 1) WINDOW_Y), and its keys are rows [i CORE_Y - HALO_Y, (i + 1) CORE_Y + HALO_Y) of the rolled
key map; so in x, and in z, which volumes have besides (AXES 3). A volume comes with depth and height folded into one
axis, for its addresses are those of a map of D * H rows; only where a token lies in its window knows of three axes.

A tile is BLOCK_M queries x BLOCK_N keys, of N whole windows (a group; each has a slot in the tile) or of a part of one.
The code of a token, 4 * slot + 2 * past the seam in y + past it in x (a third bit, 4, of z where there is one, and then
8 * slot), says who sees whom: a query sees the keys of its own code, with SOFT also those of its slot, at the price of
`seam`. NO_QUERY and NO_KEY are seen by nobody.

Tuples that device functions take, here and in ``cross_scale_attention_tiles``:
    place  one number of each axis, ([z,] y, x), as step, halo, near    token (place, slot, mask)  in its window
    window (image, place)  in its grid    grid (place, windows)    axes  of each axis: size, cycle, shift, seam
    pixel (image, row, column)  in a map, of a volume the folded row
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_QUERY, NO_KEY = tl.constexpr(-8), tl.constexpr(-4)

# Never specialised: a new size runs the code of the old one.
ROLLED = ("size", "cycle", "shift", "seam")
OF_AXES = tuple(f"{name}_{side}{axis}" for side in "qk" for axis in "zyx" for name in ROLLED)
BIAS = ("bias_start", "bias_h", *(f"bias_{side}{axis}" for side in "qk" for axis in "zyx"))
COUNTS = ("nz", "ny", "nx", "windows", "heads", "chunk", "groups", "rows", "tile_rows", "tile_columns", "delta_size")
SIZES = (*OF_AXES, *BIAS, *COUNTS)
# Specialised where they are 1, not on what divides them: VEC says that.
STRIDES = tuple(f"stride_{tensor}{axis}" for tensor in ("q", "k", "v", "g", "dq", "dk", "dv") for axis in "byxhd")


@triton.jit
def of_axes(z, y, x, AXES: tl.constexpr):
    """A place, of the axes that there are."""
    return (z, y, x) if AXES == 3 else (y, x)


@triton.jit
def axes_of(
    size_z, cycle_z, shift_z, seam_z, size_y, cycle_y, shift_y, seam_y, size_x, cycle_x, shift_x, seam_x,
    AXES: tl.constexpr,
):  # fmt: skip
    """The axes that there are of a map."""
    y, x = (size_y, cycle_y, shift_y, seam_y), (size_x, cycle_x, shift_x, seam_x)
    return ((size_z, cycle_z, shift_z, seam_z), y, x) if AXES == 3 else (y, x)


@triton.jit
def plus(a, b):
    """The sum of two places."""
    if len(a) == 3:
        return a[0] + b[0], a[1] + b[1], a[2] + b[2]
    else:
        return a[0] + b[0], a[1] + b[1]


@triton.jit
def minus(a, b):
    """The difference of two places."""
    if len(a) == 3:
        return a[0] - b[0], a[1] - b[1], a[2] - b[2]
    else:
        return a[0] - b[0], a[1] - b[1]


@triton.jit
def place_of(row, x, sides):
    """A place from its row, of a volume the folded one, and column. `sides`: of the window or grid it lies in."""
    return (row // sides[1], row % sides[1], x) if len(sides) == 3 else (row, x)


@triton.jit
def place_in_window(o, TOKENS: tl.constexpr, sides, N: tl.constexpr):
    """Tokens o of a tile of N windows of TOKENS tokens, with these sides: place, slot, whether they exist."""
    columns = sides[len(sides) - 1]
    if N == 1:
        return place_of(o // columns, o % columns, sides), 0, o < TOKENS
    else:
        return place_of(o % TOKENS // columns, o % columns, sides), o // TOKENS, o < N * TOKENS


@triton.jit
def masked(token, m):
    """Tokens with another mask."""
    place, slot, _ = token
    return place, slot, m


@triton.jit
def window_of(token, first, grid, N: tl.constexpr):
    """Window of tokens of the group that begins at window `first`, and the mask of those whose window exists."""
    _, slot, m_token = token
    counts, windows = grid
    index, nx = first + slot, counts[len(counts) - 1]
    per_image = counts[0] * counts[1] * nx if len(counts) == 3 else counts[0] * nx

    o_grid = index % per_image
    window = index // per_image, place_of(o_grid // nx, o_grid % nx, counts)

    # Only a group of several windows can reach past the last one.
    m_live = m_token if N == 1 else m_token & (index < windows)
    return window, m_live


@triton.jit
def row_in_map(u, axis):
    """Row of the map at row u of the rolled map, whether there is one, whether u lies past the seam."""
    size, cycle, shift, seam = axis
    o = u + shift
    o = tl.where(o >= cycle, o - cycle, o)
    return o, (u >= 0) & (u < cycle) & (o < size), u >= seam


@triton.jit
def place_in_map(window, token, m_live, axes, step, halo):
    """Pixel of tokens, those of m_live that lie in the map, whether they lie past the seam of each axis.

    step, halo: from one window's rows to the next's; rows of a window before its own
    """
    image, w = window
    place, _, _ = token
    Y: tl.constexpr = len(axes) - 2
    X: tl.constexpr = len(axes) - 1

    o_y, m_y, past_y = row_in_map(w[Y] * step[Y] + place[Y] - halo[Y], axes[Y])
    o_x, m_x, past_x = row_in_map(w[X] * step[X] + place[X] - halo[X], axes[X])
    m_map = m_live & m_y & m_x
    if len(axes) == 3:
        o_z, m_z, past_z = row_in_map(w[0] * step[0] + place[0] - halo[0], axes[0])
        size_y, _, _, _ = axes[Y]
        return (image, o_z * size_y + o_y, o_x), m_map & m_z, (past_z, past_y, past_x)
    else:
        return (image, o_y, o_x), m_map, (past_y, past_x)


@triton.jit
def rows_and_columns(axes):
    """Of a map; of a volume the folded rows."""
    if len(axes) == 3:
        return axes[0][0] * axes[1][0], axes[2][0]
    else:
        return axes[0][0], axes[1][0]


@triton.jit
def code_of(token, past, m, NOTHING: tl.constexpr):
    """Codes of tokens; NOTHING where m is false."""
    _, slot, _ = token
    if len(past) == 3:
        code = slot * 8 + past[0].to(tl.int32) * 4 + past[1].to(tl.int32) * 2 + past[2].to(tl.int32)
    else:
        code = slot * 4 + past[0].to(tl.int32) * 2 + past[1].to(tl.int32)
    return tl.where(m, code, NOTHING * (len(past) - 1))  # of a slot of its own with three bits too


@triton.jit
def key_code_of(token, past, m, BLOCK_D: tl.constexpr):
    """Codes of keys, by way of a reduction: compilers move its result between the layouts of tiles.

    Of plain arithmetic they make copies for each layout, whose intermediate values fill the registers.
    """
    code = code_of(token, past, m, NO_KEY)
    return tl.max(tl.broadcast_to(code[:, None], (code.shape[0], BLOCK_D)), 1)


@triton.jit
def place_near(place, near, CORE: tl.constexpr, HALO: tl.constexpr, m):
    """Where keys lie on an axis of a window that is `near` windows away, halo included; those of m that it sees."""
    o = place - near * CORE + HALO
    return o, m & (o >= 0) & (o < CORE + 2 * HALO)
