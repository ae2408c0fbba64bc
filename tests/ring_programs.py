"""Small device programs written by hand, for the tests of the runtime, the clock and the memory."""

from dataclasses import replace

from distributed.layout import Layout
from distributed.mesh import Mesh
from distributed.program import Block, Branch, Buffer, Collective, Kernel, Launch, Loop, Program
from kernels.work import KernelWork, OpWork, Tensor

__all__ = ["Builder", "elementwise_work", "matmul_work"]

_ALIGNMENT_BYTES = 64


def matmul_work(m, k, n, dtype="f32"):
    left, right = Tensor(shape=(m, k), dtype=dtype), Tensor(shape=(k, n), dtype=dtype)
    result = Tensor(shape=(m, n), dtype=dtype)
    op = OpWork(kind="dot_general", operands=(left, right), results=(result,), matmul=(1, m, k, n))
    return KernelWork(name="matmul", ops=(op,), reads=(left, right), writes=(result,))


def elementwise_work(shape, dtype="f32", operands=2):
    one = Tensor(shape=shape, dtype=dtype)
    op = OpWork(kind="add", operands=(one,) * operands, results=(one,))
    return KernelWork(name="elementwise", ops=(op,), reads=(one,) * operands, writes=(one,))


class Builder:
    """Collects buffers, segments and steps; ``program`` puts them together.

    Buffers are numbered as they are made. The mesh is one axis ``tp`` over all cores.
    """

    def __init__(self, num_cores):
        self.mesh = Mesh(axes=(("tp", num_cores),))
        self.num_cores = num_cores
        self.buffers, self.segments, self.layouts = [], {}, {}
        self.offset = 0

    def buffer(self, shape, dtype="f32", *, varying=False, host=False):
        tensor = Tensor(shape=shape, dtype=dtype)
        number, offset = len(self.buffers), None if host else self.offset
        self.buffers.append(Buffer(id=number, tensor=tensor, varying=varying, offset_bytes=offset))
        if not host:
            self.offset += -(-tensor.size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return number

    def global_buffer(self, shape, dtype="f32", dim_axes=None):
        """An input or output: cut along the dims that ``dim_axes`` names, in blocks rounded up."""
        axes = dim_axes or ((),) * len(shape)
        local = tuple(
            -(-size // self.mesh.size(names)) if names else size
            for size, names in zip(shape, axes, strict=True)
        )
        number = self.buffer(local, dtype, varying=any(axes))
        self.layouts[number] = Layout(
            global_shape=shape, local_shape=local, dtype=dtype, mesh=self.mesh, dim_axes=axes
        )
        return number

    def segment(self, name, text):
        self.segments[name] = text
        return name

    def launch(self, segment, operands, results, *, varying=False, takes_rank=False, work=None, donated=()):
        kernels = ()
        if work is not None:
            kernel = Kernel(
                work=work, operands=tuple(operands), results=tuple(results), location=f"{segment}.py:1"
            )
            kernels = (kernel,)
        return Launch(
            segment=segment,
            operands=tuple(operands),
            results=tuple(results),
            varying=varying,
            takes_rank=takes_rank,
            kernels=kernels,
            donated=tuple(donated),
        )

    def collective(self, kind, operand, result, *, groups=None, **more):
        return Collective(
            kind=kind,
            operands=(operand,),
            results=(result,),
            groups=groups or (tuple(range(self.num_cores)),),
            location=f"{kind}.py:7",
            **more,
        )

    def block(self, arguments, steps, results):
        return Block(arguments=tuple(arguments), steps=tuple(steps), results=tuple(results))

    def loop(self, operands, condition, body, results, trip_count=None):
        return Loop(
            operands=tuple(operands),
            condition=condition,
            body=body,
            results=tuple(results),
            trip_count=trip_count,
            location="loop.py:3",
        )

    def branch(self, index, blocks, results):
        return Branch(index=index, blocks=tuple(blocks), results=tuple(results), location="branch.py:4")

    def program(self, inputs, steps, outputs, *, aliases=(), name="hand"):
        """``outputs`` without a layout of their own are replicated."""
        for number in outputs:
            if number not in self.layouts:
                tensor = self.buffers[number].tensor
                self.layouts[number] = Layout(
                    global_shape=tensor.shape,
                    local_shape=tensor.shape,
                    dtype=tensor.dtype,
                    mesh=self.mesh,
                    dim_axes=((),) * len(tensor.shape),
                )
        return Program(
            name=name,
            num_cores=self.num_cores,
            buffers=tuple(self.buffers),
            main=self.block(inputs, steps, outputs),
            segments=dict(self.segments),
            input_layouts=tuple(self.layouts[number] for number in inputs),
            output_layouts=tuple(self.layouts[number] for number in outputs),
            aliases=tuple(aliases),
        )

    def place_at(self, number, offset_bytes):
        """Puts a buffer elsewhere in HBM."""
        self.buffers[number] = replace(self.buffers[number], offset_bytes=offset_bytes)
