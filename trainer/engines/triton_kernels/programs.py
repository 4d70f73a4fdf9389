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


@triton.jit(do_not_specialize=["module_key", "threshold", "rows", "blocks"])  # else compiled anew for what 16 divides
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


@triton.jit
def adamw(
    table,
    owners,
    columns,
    factors,
    UNIT: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One step of AdamW for one block of one slice; the gradient is zero afterwards.

    Args:
        table: (slices, 6) int64: addresses of parameter, gradient, exp_avg and exp_avg_sq, elements, and the program
            of its first block.
        owners: (programs,) int32, the slice of each.
        columns: (slices, 6) float64: lr, 1 - lr · decay, beta1, beta2, bias correction 1, √(bias correction 2).
        factors: (slices,) float32, on the gradient.
        UNIT: elements, 1 or 4: it divides the number of them in every slice, and their bytes all addresses.
        EPS: beside the denominator.
        BLOCK: elements of a program.
    """
    owner = tl.load(owners + tl.program_id(0)).to(tl.int64)
    row = table + owner * 6
    place = (tl.program_id(0) - tl.load(row + 5)) * BLOCK + tl.arange(0, BLOCK)
    inside = place < tl.multiple_of(tl.load(row + 4), UNIT)
    parameters = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), 4 * UNIT) + place
    gradients = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), 4 * UNIT) + place
    averages = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), 4 * UNIT) + place
    squares = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(tl.float32)), 4 * UNIT) + place

    column = columns + owner * 6
    lr = tl.load(column)
    decay = tl.load(column + 1).to(tl.float32)
    beta1 = tl.load(column + 2)
    beta2 = tl.load(column + 3)
    step_size = (lr / tl.load(column + 4)).to(tl.float32)
    correction = tl.load(column + 5).to(tl.float32)
    weight = (1.0 - beta1).to(tl.float32)  # in float64: of a float32 beta2 near 1 only half the digits would be left

    gradient = tl.load(gradients, mask=inside, other=0.0) * tl.load(factors + owner)
    average = tl.load(averages, mask=inside, other=0.0)
    ahead = gradient - average
    average = tl.where(weight < 0.5, average + weight * ahead, gradient - ahead * (1.0 - weight))  # torch.lerp
    square = tl.load(squares, mask=inside, other=0.0) * beta2.to(tl.float32)
    square = square + (1.0 - beta2).to(tl.float32) * (gradient * gradient)
    denominator = tl.div_rn(tl.sqrt_rn(square), correction) + EPS
    parameter = tl.load(parameters, mask=inside, other=0.0) * decay
    parameter = parameter - step_size * tl.div_rn(average, denominator)
    tl.store(averages, average, mask=inside)
    tl.store(squares, square, mask=inside)
    tl.store(parameters, parameter, mask=inside)
    tl.store(gradients, tl.full((BLOCK,), 0.0, tl.float32), mask=inside)
