"""Work shared with XLA's own threads: a job of numbered tiles that whoever is free takes one by one."""

from numba import njit

from kernels.host.memory import (
    add_atomically,
    allocate,
    call_pointer,
    give_way,
    read_atomically,
    release,
    store_word,
    word,
)

__all__ = [
    "FIRST_OWN_WORD",
    "finish_tile",
    "new_job",
    "next_tile",
    "release_job",
    "share_job",
    "wait_for_job",
]

# Words of a job; those of the kernel follow.
_NEXT, _TOTAL, _DONE, _HOLDERS = range(4)
FIRST_OWN_WORD = 4
_JOB_BYTES = 256

# Words of XLA_FFI_CallFrame and of the XLA_FFI_Api it points to.
_FRAME_API, _FRAME_CONTEXT = 2, 3
_API_DESTROY_ERROR, _API_SCHEDULE, _API_NUM_THREADS = 8, 17, 18


@njit
def new_job(total):
    """A job of ``total`` tiles, held by its maker."""
    job = allocate(_JOB_BYTES)
    store_word(job, _NEXT, 0)
    store_word(job, _TOTAL, total)
    store_word(job, _DONE, 0)
    store_word(job, _HOLDERS, 1)
    return job


@njit
def next_tile(job):
    """The number of a tile that is now the caller's to compute, or -1."""
    tile = add_atomically(job, _NEXT, 1)
    return tile if tile < word(job, _TOTAL) else -1


@njit
def finish_tile(job):
    add_atomically(job, _DONE, 1)


@njit
def release_job(job):
    """Frees the job once neither its maker nor any thread it was given to holds it."""
    if add_atomically(job, _HOLDERS, -1) == 1:
        release(job)


@njit
def share_job(frame, job, task, parallel):
    """Works on the job by ``task``, a C function of it, here and if ``parallel`` in XLA's other threads.

    Each run of the task takes tiles until there are none, and lets the job go. A thread that comes late
    finds none: nothing depends on when, or whether, another begins.
    """
    if parallel:
        _schedule(frame, job, task)
    add_atomically(job, _HOLDERS, 1)
    call_pointer(task, job)


@njit
def _schedule(frame, job, task):
    """Asks for one thread less than there are tiles or threads."""
    api, context = word(frame, _FRAME_API), word(frame, _FRAME_CONTEXT)
    arguments = allocate(6 * 8)
    store_word(arguments, 0, 4 * 8)
    store_word(arguments, 1, 0)
    store_word(arguments, 2, context)
    store_word(arguments, 3, arguments + 5 * 8)
    error = call_pointer(word(api, _API_NUM_THREADS), arguments)
    helpers = 0 if error else min(word(arguments, 5), word(job, _TOTAL)) - 1
    store_word(arguments, 0, 5 * 8)
    store_word(arguments, 3, task)
    store_word(arguments, 4, job)
    while helpers > 0 and not error:
        add_atomically(job, _HOLDERS, 1)
        error = call_pointer(word(api, _API_SCHEDULE), arguments)
        if error:
            add_atomically(job, _HOLDERS, -1)
        helpers -= 1
    if error:
        # There is no pool, or it takes nothing more: the tiles are computed all the same, by the caller.
        store_word(arguments, 0, 3 * 8)
        store_word(arguments, 2, error)
        call_pointer(word(api, _API_DESTROY_ERROR), arguments)
    release(arguments)


@njit
def wait_for_job(job):
    """Until the tiles that others took are computed too; each of them is being worked on."""
    while read_atomically(job, _DONE) < word(job, _TOTAL):
        give_way()
