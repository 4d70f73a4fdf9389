"""The kernels in Triton's language. The only module that imports Triton, so it is imported where a kernel is launched.

Arguments in capitals are known when a kernel is compiled.
"""

# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def _mixed(x):
    """The 32-bit finaliser of ``keyed_dropout``, on uint32 lanes."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["module_key", "threshold"])
def drop(
    x,
    dropped,
    keys,
    p,
    module_key,
    threshold,
    factor,
    rows,
    length,
    features,
    blocks,
    x_row,
    x_token,
    dropped_row,
    dropped_token,
    PER_ROW: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Keyed dropout of one block of places in a few rows, which share the hash of their places.

    Args:
        x, dropped: (rows, tokens, features), the features without gaps. Each input is read once, each result written
            once.
        keys: (rows,)
        p: (rows,) float32 or float64, if ``PER_ROW``.
        module_key, threshold: 32 bits, as signed numbers.
        factor: 1 - p, or its reciprocal if ``RECIPROCAL``.
        length: tokens · features.
        blocks: of a row.
        x_row, x_token, dropped_row, dropped_token: strides, in elements.
        ROWS: of a program.
        BLOCK: places of a program.
    """
    first_row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    hashed_place = _mixed(place.to(tl.uint32))
    token = (place // features).to(tl.int64)
    feature = place % features
    x_place = token * x_token + feature
    dropped_place = token * dropped_token + feature
    for i in tl.static_range(ROWS):
        row = first_row + i
        inside = (place < length) & (row < rows)
        key = tl.load(keys + row, mask=row < rows, other=0).to(tl.uint32)
        lanes = _mixed(_mixed(key ^ module_key.to(tl.uint32, bitcast=True)) ^ hashed_place)
        values = tl.load(x + row * x_row + x_place, mask=inside).to(tl.float32)
        if PER_ROW:
            row_p = tl.load(p + row, mask=row < rows, other=0.0)
            kept = lanes >= (row_p.to(tl.float64) * 4294967296.0).to(tl.int64).to(tl.uint32)
            # rounded as by the operators: to the type of p, and by float32 to that of x
            keep = (1.0 - row_p).to(tl.float32).to(x.dtype.element_ty).to(tl.float32)
            values = tl.div_rn(values * kept.to(tl.float32), keep)
        else:
            kept = lanes >= threshold.to(tl.uint32, bitcast=True)
            values = values * kept.to(tl.float32)
            values = values * factor if RECIPROCAL else tl.div_rn(values, factor)
        tl.store(dropped + row * dropped_row + dropped_place, values.to(dropped.dtype.element_ty), mask=inside)
