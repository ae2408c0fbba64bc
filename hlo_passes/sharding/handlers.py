"""The ops that need more than their factor rule, one table: how each is made local."""

from hlo_passes.sharding import (
    handlers_concatenate,
    handlers_control,
    handlers_gather,
    handlers_pool,
    handlers_scatter,
    handlers_simple,
    handlers_slices,
    handlers_sort,
    handlers_window,
)
from hlo_passes.sharding.partition import Handlers

__all__ = ["HANDLERS"]

HANDLERS: Handlers = {
    **handlers_simple.HANDLERS,
    **handlers_control.HANDLERS,
    **handlers_gather.HANDLERS,
    **handlers_scatter.HANDLERS,
    **handlers_slices.HANDLERS,
    **handlers_window.HANDLERS,
    **handlers_pool.HANDLERS,
    **handlers_concatenate.HANDLERS,
    **handlers_sort.HANDLERS,
}
