"""What the fused encoder runs on a GPU beside cuBLAS, in Triton's language: five kernels.

Launched by kernels.py, which says shapes and types; a docstring here says what one program of a kernel does.

Pairs: where `has_pairs`, a float32 tensor is held as two float16 ones, ``high + low / 2048`` (2, rows, dims): high is
the number rounded, low what the rounding left. Three products of halves then stand for one of float32, and tensor cores
do them; sums go to float32 accumulators. So a product is right to about 22 bits, as a sum of float32 products is.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOW_SCALE = tl.constexpr(2048.0)
"""Puts the low half where float16 keeps all its digits."""
NONE, LEAKY, GELU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _store(pointer, low_offset, value, mask, has_pairs: tl.constexpr):
    """Writes a tile in the type of its tensor, or as a pair."""
    high = value.to(pointer.dtype.element_ty)
    tl.store(pointer, high, mask=mask)
    if has_pairs:
        low = (value - high.to(tl.float32)) * LOW_SCALE
        tl.store(pointer + low_offset, low.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _tanh(x):
    # exp of a negative number alone: no overflow
    power = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - power) / (1.0 + power)
    return tl.where(x < 0, -size, size)


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def gather_kernel(
    frames, spans, mean, std, position, out, low_offset,
    window_frames: tl.constexpr, motion_dim: tl.constexpr, out_dim: tl.constexpr,
    block_rows: tl.constexpr, block_dims: tl.constexpr, has_pairs: tl.constexpr,
):  # fmt: skip
    """Cuts one window, normalises it and adds its position: a program takes some of its 2T frames."""
    window = tl.program_id(0).to(tl.int64)
    begin = tl.load(spans + window * 3)
    end = tl.load(spans + window * 3 + 1)
    start = tl.load(spans + window * 3 + 2)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    dim = tl.arange(0, block_dims)
    is_row = row < 2 * window_frames
    frame = begin + start - window_frames + row
    is_inside = is_row & (frame >= begin) & (frame < end)
    is_dim = dim < motion_dim
    x = tl.load(
        frames + frame[:, None] * motion_dim + dim[None, :], mask=is_inside[:, None] & is_dim[None, :], other=0.0
    )
    at = position + row[:, None] * motion_dim + dim[None, :]
    place = tl.load(at, mask=is_row[:, None] & is_dim[None, :], other=0.0)
    centre = tl.load(mean + dim, mask=is_dim, other=0.0)
    width = tl.load(std + dim, mask=is_dim, other=1.0)
    x = tl.div_rn(x - centre[None, :], tl.broadcast_to(width[None, :], (block_rows, block_dims))) + place
    target = out + (window * 2 * window_frames + row[:, None]) * out_dim + dim[None, :]
    _store(target, low_offset, x, is_row[:, None] & (dim < out_dim)[None, :], has_pairs)


@triton.jit
def norm_kernel(
    x, shift, weight, bias, out, low_offset, num_rows, eps,
    dims: tl.constexpr, block_rows: tl.constexpr, block_dims: tl.constexpr, has_pairs: tl.constexpr,
):  # fmt: skip
    """LayerNorm of x + shift, some rows a program."""
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    dim = tl.arange(0, block_dims)
    is_dim = dim < dims
    mask = (row < num_rows)[:, None] & is_dim[None, :]
    at = row[:, None] * dims + dim[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(shift + dim, mask=is_dim, other=0.0)[None, :]
    value = tl.where(is_dim[None, :], value, 0.0)
    mean = tl.sum(value, axis=1) / dims
    centred = tl.where(is_dim[None, :], value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / dims
    inverse = 1.0 / tl.sqrt_rn(variance + eps)
    scale = tl.load(weight + dim, mask=is_dim, other=0.0)
    offset = tl.load(bias + dim, mask=is_dim, other=0.0)
    value = centred * inverse[:, None] * scale[None, :] + offset[None, :]
    _store(out + at, low_offset, value, mask, has_pairs)


@triton.jit
def _dot3(a, a_low, b, b_low):
    """The product of two pairs, in float32."""
    small = tl.dot(a, b_low, tl.dot(a_low, b))
    return tl.dot(a, b, small * (1.0 / LOW_SCALE))


@triton.jit
def _scores(query, query_low, base, low_offset, at, mask, column, num_columns, scale, has_pairs: tl.constexpr):
    """Scaled scores of a query tile and the keys at `base`; -inf for columns that are not there."""
    key = tl.load(base + at, mask=mask, other=0.0)
    if has_pairs:
        key_low = tl.load(base + low_offset + at, mask=mask, other=0.0)
        scores = _dot3(query, query_low, tl.trans(key), tl.trans(key_low))
    else:
        scores = tl.dot(query, tl.trans(key))
    return tl.where((column < num_columns)[None, :], scores * scale, float("-inf"))


@triton.jit
def _weighted(chance, base, low_offset, at, mask, has_pairs: tl.constexpr):
    """The values at `base`, weighted."""
    value = tl.load(base + at, mask=mask, other=0.0)
    high = chance.to(value.dtype)
    if has_pairs:
        value_low = tl.load(base + low_offset + at, mask=mask, other=0.0)
        low = ((chance - high.to(tl.float32)) * LOW_SCALE).to(value.dtype)
        return _dot3(high, low, value, value_low)
    return tl.dot(high, value)


@triton.jit
def attend_kernel(
    qkv, out, qkv_low, out_low, scale,
    window_frames: tl.constexpr, heads: tl.constexpr, head_dim: tl.constexpr,
    block_query: tl.constexpr, block_frames: tl.constexpr, has_pairs: tl.constexpr,
):  # fmt: skip
    """Some queries of one head of one window's half: frames of `prev` see `prev`, those of `this` see both."""
    query_blocks: tl.constexpr = (window_frames + block_query - 1) // block_query
    program = tl.program_id(0)
    window = (program // (heads * 2 * query_blocks)).to(tl.int64)
    head = program % heads
    half = program // heads % 2
    asking = (program // (heads * 2) % query_blocks) * block_query + tl.arange(0, block_query)
    hidden: tl.constexpr = heads * head_dim
    frame = tl.arange(0, block_frames)
    dim = tl.arange(0, head_dim)
    query_mask = (asking < window_frames)[:, None] & (dim < head_dim)[None, :]
    query_at = asking[:, None] * (3 * hidden) + dim[None, :]
    mask = (frame < window_frames)[:, None] & (dim < head_dim)[None, :]
    at = frame[:, None] * (3 * hidden) + dim[None, :]
    prev = qkv + window * (2 * window_frames * 3 * hidden) + head * head_dim
    this = prev + window_frames * 3 * hidden
    own = prev + half * window_frames * 3 * hidden
    query = tl.load(own + query_at, mask=query_mask, other=0.0)
    query_low = query
    if has_pairs:
        query_low = tl.load(own + qkv_low + query_at, mask=query_mask, other=0.0)

    factor = scale * 1.4426950408889634  # powers of 2 below
    scores = _scores(query, query_low, prev + hidden, qkv_low, at, mask, frame, window_frames, factor, has_pairs)
    largest = tl.max(scores, axis=1)
    chance = tl.exp2(scores - largest[:, None])
    total = tl.sum(chance, axis=1)
    mixed = _weighted(chance, prev + 2 * hidden, qkv_low, at, mask, has_pairs)
    if half == 1:
        scores = _scores(query, query_low, this + hidden, qkv_low, at, mask, frame, window_frames, factor, has_pairs)
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        fade = tl.exp2(largest - larger)
        chance = tl.exp2(scores - larger[:, None])
        total = total * fade + tl.sum(chance, axis=1)
        mixed = mixed * fade[:, None] + _weighted(chance, this + 2 * hidden, qkv_low, at, mask, has_pairs)
    mixed = mixed / total[:, None]
    target = out + (window * 2 + half) * (window_frames * hidden) + head * head_dim
    _store(target + asking[:, None] * hidden + dim[None, :], out_low, mixed, query_mask, has_pairs)


@triton.jit
def linear_kernel(
    a, weight, bias, residual, out, out_pair, a_low, weight_low, out_low, num_rows,
    dims_in: tl.constexpr, dims_out: tl.constexpr, activation: tl.constexpr, slope: tl.constexpr,
    has_bias: tl.constexpr, has_residual: tl.constexpr, has_pairs: tl.constexpr,
    has_out: tl.constexpr, has_out_pair: tl.constexpr,
    block_rows: tl.constexpr, block_out: tl.constexpr, block_in: tl.constexpr,
):  # fmt: skip
    """act(a weight^T + bias + residual): one tile of the result a program, tiles of one block of rows side by side."""
    tiles_out: tl.constexpr = (dims_out + block_out - 1) // block_out
    tile = tl.program_id(0)
    row = (tile // tiles_out).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = (tile % tiles_out) * block_out + tl.arange(0, block_out)
    inner = tl.arange(0, block_in)
    is_row, is_column = row < num_rows, column < dims_out
    total = tl.zeros((block_rows, block_out), tl.float32)
    a_at = a + row[:, None] * dims_in + inner[None, :]
    weight_at = weight + column[None, :] * dims_in + inner[:, None]
    for first in range(0, dims_in, block_in):
        is_inner = first + inner < dims_in
        a_mask = is_row[:, None] & is_inner[None, :]
        weight_mask = is_column[None, :] & is_inner[:, None]
        a_high = tl.load(a_at + first, mask=a_mask, other=0.0)
        weight_high = tl.load(weight_at + first, mask=weight_mask, other=0.0)
        if has_pairs:
            a_rest = tl.load(a_at + a_low + first, mask=a_mask, other=0.0)
            weight_rest = tl.load(weight_at + weight_low + first, mask=weight_mask, other=0.0)
            # Tensor cores cut off what does not fit, always towards zero: each block is summed by itself, upon its
            # small products, and added with rounding. Upon zero the compiler would make one long sum of it again.
            small = tl.dot(a_high, weight_rest, tl.dot(a_rest, weight_high))
            total += tl.dot(a_high, weight_high, small * (1.0 / LOW_SCALE))
        else:
            total = tl.dot(a_high, weight_high, total)
    mask = is_row[:, None] & is_column[None, :]
    at = row[:, None] * dims_out + column[None, :]
    if has_bias:
        total += tl.load(bias + column, mask=is_column, other=0.0)[None, :]
    if has_residual:
        total += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if activation == LEAKY:
        total = tl.where(total > 0, total, total * slope)
    if activation == GELU:
        total = _gelu(total)
    if has_out:
        tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
    if has_out_pair:
        _store(out_pair + at, out_low, total, mask, True)


@triton.jit
def _quantize_scale(
    residual, packed, patch_num: tl.constexpr, window_frames: tl.constexpr, code_dim: tl.constexpr,
    block_tokens: tl.constexpr, block_frames: tl.constexpr,
):  # fmt: skip
    """Codes one scale of one half: pools the residual, writes packed bits, takes the spread code off the residual."""
    dim = tl.arange(0, code_dim)
    token = tl.arange(0, block_tokens)
    is_token = token < patch_num
    first = token * window_frames // patch_num
    last = ((token + 1) * window_frames + patch_num - 1) // patch_num
    pooled = tl.zeros((block_tokens, code_dim), tl.float32)
    for step in range((window_frames + patch_num - 1) // patch_num + (window_frames % patch_num > 0)):
        frame = first + step
        mask = (is_token & (frame < last))[:, None] & (dim < code_dim)[None, :]
        pooled += tl.load(residual + frame[:, None] * code_dim + dim[None, :], mask=mask, other=0.0)
    # the mean's sign is the sum's
    bits = (pooled > 0).to(tl.int32)
    places = tl.reshape(bits, (block_tokens, code_dim // 8, 8)) << (7 - tl.arange(0, 8))[None, None, :]
    values = tl.sum(places, axis=2)
    byte = tl.arange(0, code_dim // 8)
    at = packed + token[:, None] * (code_dim // 8) + byte[None, :]
    tl.store(at, values.to(tl.uint8), mask=is_token[:, None] & (byte < code_dim // 8)[None, :])
    tl.debug_barrier()  # the bits are read again by other lanes

    frame = tl.arange(0, block_frames)
    mask = (frame < window_frames)[:, None] & (dim < code_dim)[None, :]
    # as torch interpolates: positions and weights in float32
    position = tl.maximum((frame + 0.5) * (patch_num * 1.0 / window_frames) - 0.5, 0.0)
    left = tl.minimum(position.to(tl.int32), patch_num - 1)
    right = tl.minimum(left + 1, patch_num - 1)
    share = position - left
    place = 7 - dim % 8
    left_byte = tl.load(packed + left[:, None] * (code_dim // 8) + (dim // 8)[None, :], mask=mask, other=0)
    right_byte = tl.load(packed + right[:, None] * (code_dim // 8) + (dim // 8)[None, :], mask=mask, other=0)
    corner: tl.constexpr = 1.0 / code_dim**0.5
    left_code = tl.where((left_byte.to(tl.int32) >> place[None, :]) & 1 == 1, corner, -corner)
    right_code = tl.where((right_byte.to(tl.int32) >> place[None, :]) & 1 == 1, corner, -corner)
    code = left_code * (1.0 - share)[:, None] + right_code * share[:, None]
    at = residual + frame[:, None] * code_dim + dim[None, :]
    tl.store(at, tl.load(at, mask=mask, other=0.0) - code, mask=mask)
    tl.debug_barrier()


@triton.jit
def quantize_kernel(
    residual, packed, window_frames: tl.constexpr, code_dim: tl.constexpr, num_tokens: tl.constexpr,
    patch_nums: tl.constexpr, token_blocks: tl.constexpr, block_frames: tl.constexpr,
):  # fmt: skip
    """Codes one half of one window over all scales; the residual is used up."""
    half = tl.program_id(0).to(tl.int64)
    residual += half * (window_frames * code_dim)
    packed += half * (num_tokens * (code_dim // 8))
    for scale in tl.static_range(len(patch_nums)):
        _quantize_scale(residual, packed, patch_nums[scale], window_frames, code_dim, token_blocks[scale], block_frames)
        packed += patch_nums[scale] * (code_dim // 8)
