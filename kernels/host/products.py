"""Products as XLA custom calls: each call computes one or more of the same sizes, as one job of tiles."""

from llvmlite import binding
from numba import cfunc, literally, njit

from kernels.host.elements import KINDS, SIZES
from kernels.host.frame import (
    answer_query,
    argument,
    data,
    dims,
    num_arguments,
    num_results,
    rank,
    result,
    share,
)
from kernels.host.matmul import add_stretches, multiply_columns, multiply_stretch, tile_height, tile_width
from kernels.host.memory import (
    add_atomically,
    allocate,
    clear,
    copy,
    function_address,
    release,
    store_word,
    word,
)
from kernels.host.pairs import multiply_pairs
from kernels.host.pool import (
    FIRST_OWN_WORD,
    finish_tile,
    new_job,
    next_tile,
    release_job,
    share_job,
    wait_for_job,
)

__all__ = ["compile_product"]

# Words of the job. Of each product x is [batch, m, k], w [batch, k, n] or (by rows) [batch, n, k] and out
# [batch, m, n]. What a product falls into are columns or, of one row, rows of weights, so many each.
_FRAME, _CORES, _X_BYTES, _PLACES, _BATCH, _M, _K, _N, _SIZE, _PARTS, _TURN, _DONE, _SUMS = range(
    FIRST_OWN_WORD, FIRST_OWN_WORD + 13
)

_WORD_BYTES = 8

_DIMS = 3
"""Of x, the weights and the result of one product."""

_PARALLEL_FROM = 1 << 18
"""Multiplications that are worth waking another thread for."""

_TURNS = 16
"""So many times, at least, threads come for stretches of weights: each takes several in a row if it can."""


@njit
def _operand(frame, cores, product, number, x_bytes):
    """The address of an operand of a product: 0 is x, 1 the weights."""
    group, core = divmod(product, cores)
    first = group * (num_arguments(frame) // num_results(frame))
    if number == 0:
        return share(argument(frame, first), _DIMS, core, x_bytes)
    return data(argument(frame, first + 1 + core))


@njit
def _operand_of(job, place, number):
    product = word(word(job, _PLACES), place)
    return _operand(word(job, _FRAME), word(job, _CORES), product, number, word(job, _X_BYTES))


@njit
def _result(frame, cores, product):
    """The address of a product's result, f32."""
    group, core = divmod(product, cores)
    return share(result(frame, group), _DIMS, core, 4)


@njit
def _out(job, place):
    product = word(word(job, _PLACES), place)
    return _result(word(job, _FRAME), word(job, _CORES), product)


@njit
def _compute_stretches(kind, size, job, tile):
    """One row times some rows of weights after the other, each added up by itself.

    Whoever ends the last of a product adds up these sums, in their order.
    """
    literally(kind)
    k, n, height, parts, turn = (
        word(job, _K), word(job, _N), word(job, _SIZE), word(job, _PARTS), word(job, _TURN)
    )  # fmt: skip
    one, begin = divmod(tile * turn, (parts + turn - 1) // turn * turn)
    place, batch = divmod(one, word(job, _BATCH))
    x, w = _operand_of(job, place, 0) + 4 * batch * k, _operand_of(job, place, 1) + size * batch * k * n
    out, sums = _out(job, place) + 4 * batch * n, word(job, _SUMS) + 4 * n * parts * one
    end = min(begin + turn, parts)
    last = min(end * height, k)
    for part in range(begin, end):
        first, stop = part * height, min((part + 1) * height, k)
        behind = size * n * (last - stop)
        target = out if parts == 1 else sums + 4 * n * part
        multiply_stretch(kind, size, x + 4 * first, w + size * n * first, target, stop - first, n, behind)
    if parts > 1 and add_atomically(word(job, _DONE), one, end - begin) == parts - (end - begin):
        add_stretches(sums, out, parts, n)


@njit
def _compute_columns(kind, size, by_rows, pairs, job, tile):
    """All rows of one range of columns."""
    literally(kind)
    literally(by_rows)
    literally(pairs)
    m, k, n, width = word(job, _M), word(job, _K), word(job, _N), word(job, _SIZE)
    one, part = divmod(tile, word(job, _PARTS))
    place, batch = divmod(one, word(job, _BATCH))
    first = part * width
    x = _operand_of(job, place, 0) + (2 if pairs else 4) * batch * m * k
    w = _operand_of(job, place, 1) + size * (batch * k * n + first * (k if by_rows else 1))
    out, columns = _out(job, place) + 4 * (batch * m * n + first), min(width, n - first)
    if pairs:
        multiply_pairs(by_rows, x, w, out, m, k, n, columns)
    else:
        multiply_columns(kind, size, by_rows, x, w, out, m, k, n, columns)


@njit
def _compute_tile(kind, size, by_rows, pairs, job, tile):
    """A part of the job, in one order of summation however the tiles are shared out."""
    literally(kind)
    literally(by_rows)
    literally(pairs)
    if word(job, _M) == 1 and not by_rows:
        _compute_stretches(kind, size, job, tile)
    else:
        _compute_columns(kind, size, by_rows, pairs, job, tile)


@njit
def _is_as_before(frame, cores, product, x_bytes):
    """Whether a product has the very operands of the one before it, as on cores that share all they hold."""
    for number in range(2):
        found = _operand(frame, cores, product, number, x_bytes)
        if found != _operand(frame, cores, product - 1, number, x_bytes):
            return False
    return True


@njit
def _find_places(frame, cores, products, x_bytes, places):
    """The products that are not those before them; how many there are."""
    count = 0
    for product in range(products):
        if product == 0 or not _is_as_before(frame, cores, product, x_bytes):
            store_word(places, count, product)
            count += 1
    return count


@njit
def _cut(by_rows, m, k, n):
    """Into what a product falls: the rows or columns of weights of a part, and how many parts."""
    if m == 1 and not by_rows:
        size, whole = tile_height(k), k
    else:
        size, whole = tile_width(m, n), n
    return size, (whole + size - 1) // size


@njit
def _copy_repeated(frame, cores, products, x_bytes, size_bytes):
    """The results of products that are those before them."""
    for product in range(1, products):
        if _is_as_before(frame, cores, product, x_bytes):
            copy(_result(frame, cores, product), _result(frame, cores, product - 1), size_bytes)


@njit
def _run(frame, by_rows, x_bytes, task):
    """Reads the call frame, makes the job and works on it, with others, until it is done."""
    x, out = argument(frame, 0), result(frame, 0)
    before = rank(out) - _DIMS
    cores = word(dims(out), 0) if before else 1
    products = cores * num_results(frame)
    batch, m, n = word(dims(out), before), word(dims(out), before + 1), word(dims(out), before + 2)
    k = word(dims(x), rank(x) - 1)
    in_stretches = m == 1 and not by_rows
    size, parts = _cut(by_rows, m, k, n)
    turn = max(1, min(parts, products * batch * parts // _TURNS)) if in_stretches else 1
    memory_bytes = _WORD_BYTES * (products + products * batch)
    memory = allocate(memory_bytes + (4 * products * batch * parts * n if in_stretches and parts > 1 else 0))
    count = _find_places(frame, cores, products, x_bytes, memory)
    done = memory + _WORD_BYTES * products
    clear(done, _WORD_BYTES * products * batch)
    job = new_job(count * batch * ((parts + turn - 1) // turn))
    store_word(job, _FRAME, frame)
    store_word(job, _CORES, cores)
    store_word(job, _X_BYTES, x_bytes)
    store_word(job, _PLACES, memory)
    store_word(job, _BATCH, batch)
    store_word(job, _M, m)
    store_word(job, _K, k)
    store_word(job, _N, n)
    store_word(job, _SIZE, size)
    store_word(job, _PARTS, parts)
    store_word(job, _TURN, turn)
    store_word(job, _DONE, done)
    store_word(job, _SUMS, memory + memory_bytes)
    share_job(frame, job, task, count * batch * m * k * n >= _PARALLEL_FROM)
    wait_for_job(job)
    release_job(job)
    release(memory)
    if count < products:
        _copy_repeated(frame, cores, products, x_bytes, 4 * batch * m * n)


_COMPILED = []
"""Keeps what XLA calls by address."""


def compile_product(weights: str, stamp: str, *, by_rows: bool, pairs: bool = False) -> int:
    """The address of the compiled XLA handler of products with weights of one type and layout.

    Operands, of one product after the other: f32, or with ``pairs`` bf16, [batch, m, k] and weights
    [batch, k, n], or with ``by_rows`` [batch, n, k]; results f32 [batch, m, n]. A result with one dim more,
    the first, is that of all cores: then there are weights of each core, and x is that of all with such a
    dim, or the same for all without. Loaded from Numba's cache on disk where this machine compiled it before.

    Args:
      weights: one of ``KINDS``; with ``pairs`` bf16.
      stamp: of the sources; what was compiled of others is not found again.
    """
    kind, size = KINDS[weights], SIZES[KINDS[weights]]
    task_name = f"neuronx_product_{weights}_{by_rows}_{pairs}_{stamp}"

    @cfunc("intp(intp)", cache=True)
    def task(job):
        tile = next_tile(job)
        while tile >= 0:
            _compute_tile(kind, size, by_rows, pairs, job, tile)
            finish_tile(job)
            tile = next_tile(job)
        release_job(job)
        return len(stamp)  # nobody asks, but so the stamp is part of the cache's key

    # The handler finds the task by its name: an address would be wrong once it is loaded from the cache.
    binding.add_symbol(task_name, task.address)

    @cfunc("intp(intp)", cache=True)
    def handler(frame):
        if not answer_query(frame):
            _run(frame, by_rows, 2 if pairs else 4, function_address(task_name))
        return 0

    _COMPILED.extend((task, handler))
    return handler.address
