"""What fills the HBM of one core, and what to do where it does not fit."""

import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distributed.liveness import nested_blocks
from distributed.program import Block, Buffer, Collective, Program
from kernels.errors import OutOfDeviceMemoryError
from kernels.hardware import ALL_INSTANCES, InstanceSpec, load_core, load_instance, load_links

__all__ = ["DeviceMemory", "check_fits", "device_memory", "hbm_table", "smallest"]

_GIB = 2**30
_REDUCING = frozenset({"all_reduce", "reduce_scatter"})
# Source: neuron-runtime/explore/device-memory.rst.
_RUNTIME_COLUMNS = (
    "TOTAL", "Model\nCode", "Model\nConstants", "Tensors", "Shared\nScratchpad", "Scratchpad", "Runtime",
    "DMA Rings\nIO", "DMA Rings\nSpill", "DMA Rings\nCollectives", "DMA Rings\nRuntime", "Collectives",
    "XT CC", "Profiler\nBuffers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes in the HBM of each core.

    ``donated`` are arguments whose memory results take: caches, and in training weights and optimizer state;
    ``temporaries`` is what the plan needs beyond inputs and outputs at its peak; ``collective_buffers`` two
    chunks of the largest reducing collective (one arrives while the other is added); ``replicated_bytes`` the
    part of inputs, outputs and temporaries that every core holds whole (of the temporaries an estimate: their
    share among all temporaries, whenever they live); 0 on one core, where nothing says what could be cut.
    """

    weights_bytes: int
    donated_bytes: int
    inputs_bytes: int
    outputs_bytes: int
    temporaries_bytes: int
    collective_buffers_bytes: int
    microcode_bytes: int
    runtime_bytes: int
    capacity_bytes: int
    replicated_bytes: int

    @property
    def uses(self) -> dict[str, int]:
        """What the bytes are for."""
        return {
            "weights": self.weights_bytes,
            "caches, donated": self.donated_bytes,
            "inputs": self.inputs_bytes,
            "outputs": self.outputs_bytes,
            "temporaries": self.temporaries_bytes,
            "collective buffers": self.collective_buffers_bytes,
            "micro-code": self.microcode_bytes,
            "runtime, DMA rings": self.runtime_bytes,
        }

    @property
    def total_bytes(self) -> int:
        return sum(self.uses.values())

    def runtime_table(self, cores: int) -> str:
        """The table that the Neuron runtime logs when it runs out of memory, for one chip of ``cores`` cores.

        Weights are among its Tensors, temporaries its Shared Scratchpad: only variables larger than a page of
        that have a Scratchpad of their own there, and here there are no pages. What a plan does not tell is
        n/a: small constants, XT CC, and the DMA rings, which are in Runtime. Nobody profiles.
        """
        sizes = {
            "TOTAL": self.total_bytes,
            "Model\nCode": self.microcode_bytes,
            "Tensors": self.weights_bytes + self.donated_bytes + self.inputs_bytes + self.outputs_bytes,
            "Shared\nScratchpad": self.temporaries_bytes,
            "Scratchpad": 0,
            "Runtime": self.runtime_bytes,
            "Collectives": self.collective_buffers_bytes,
            "Profiler\nBuffers": 0,
        }
        heads = [name.rpartition("\n") for name in _RUNTIME_COLUMNS]
        lines = [("", *(above for above, _, _ in heads)), ("", *(name for _, _, name in heads))]
        for label, times in (("ND 0 Overall", cores), *((f"\\_NC {core}", 1) for core in range(cores))):
            known = {name: _size_text(times * size) for name, size in sizes.items()}
            lines.append((label, *(known.get(name, "n/a") for name in _RUNTIME_COLUMNS)))
        return "\n".join(f"{label:<13}|" + "".join(f"{c:^11}|" for c in cells) for label, *cells in lines)


def hbm_table(uses: Mapping[str, int], capacity_bytes: int, cores: int) -> str:
    """One line a use, in bytes and GiB a core and GiB a chip, of which so many ``cores`` are busy."""
    rows = [*uses.items(), ("total", sum(uses.values())), ("capacity", capacity_bytes)]
    head = f"{'':18} {'bytes a core':>18} {'GiB':>9} {f'GiB a chip ({cores})':>16}"
    lines = [f"{n:18} {size:18,} {size / _GIB:9.3f} {cores * size / _GIB:16.3f}" for n, size in rows]
    return "\n".join([head, *lines])


def device_memory(program: Program, *, weights: Collection[int] = (), family: str = "inf2") -> DeviceMemory:
    """Adds up a planned program's memory on one core (all cores hold as much).

    Args:
      program: buffers with their HBM offsets.
      weights: positions among the program's inputs that are weights; they get a row of their own.
      family: of instances: how much memory a core has.
    """
    hbm = load_core(family).hbm
    buffers = {buffer.id: buffer for buffer in program.buffers}
    arguments = dict.fromkeys(program.main.arguments)
    sizes = [buffers[number].tensor.size_bytes for number in arguments]
    donated = {index for _, index in program.aliases}.difference(weights)
    weights_bytes = sum(size for index, size in enumerate(sizes) if index in weights)
    donated_bytes = sum(size for index, size in enumerate(sizes) if index in donated)
    aliased = {output for output, _ in program.aliases}
    own_outputs = {
        number
        for index, number in enumerate(program.main.results)
        if index not in aliased and number not in arguments
    }
    outputs_bytes = sum(buffers[number].tensor.size_bytes for number in own_outputs)
    placed = [buffer for buffer in program.buffers if buffer.offset_bytes is not None]
    extent = max((buffer.offset_bytes + buffer.tensor.size_bytes for buffer in placed), default=0)
    temporaries_bytes = max(0, extent - sum(sizes) - outputs_bytes)
    kept = [buffer for buffer in placed if buffer.id in own_outputs or buffer.id in arguments]
    passing = [buffer for buffer in placed if buffer.id not in own_outputs and buffer.id not in arguments]
    share = _size(passing, uniform=True) / max(_size(passing), 1)
    whole = _size(kept, uniform=True) + round(share * temporaries_bytes)
    return DeviceMemory(
        weights_bytes=weights_bytes,
        donated_bytes=donated_bytes,
        inputs_bytes=sum(sizes) - weights_bytes - donated_bytes,
        outputs_bytes=outputs_bytes,
        temporaries_bytes=temporaries_bytes,
        collective_buffers_bytes=_staging_bytes(program),
        microcode_bytes=hbm.microcode_bytes,
        runtime_bytes=hbm.runtime_reserve_bytes,
        capacity_bytes=hbm.capacity_bytes,
        replicated_bytes=whole if program.num_cores > 1 else 0,
    )


def _size_text(size_bytes: int) -> str:
    """As the runtime writes sizes: three digits, powers of 1024 called KB, MB and GB."""
    for unit, scale in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.3f}{unit}"
    return f"{size_bytes:.3f}B"


def _size(buffers: Iterable[Buffer], *, uniform: bool = False) -> int:
    """Bytes of the buffers, or of those among them that are equal on all cores."""
    return sum(buffer.tensor.size_bytes for buffer in buffers if not (uniform and buffer.varying))


def check_fits(
    program: Program, instance: str | InstanceSpec, *, weights: Collection[int] = ()
) -> DeviceMemory:
    """The memory of a program, if a core of the instance has that much.

    Raises:
      OutOfDeviceMemoryError: it has not; the message holds the table and which tp_degree and instance
        would do, estimated by dividing what is sharded and keeping what is replicated.
    """
    spec = load_instance(instance) if isinstance(instance, str) else instance
    used = device_memory(program, weights=weights, family=spec.family)
    if used.total_bytes <= used.capacity_bytes:
        return used
    cores = min(program.num_cores, load_links(spec.family).cores_per_chip)
    tables = (
        hbm_table(used.uses, used.capacity_bytes, cores),
        "as the Neuron runtime would log it (n/a: a plan does not tell, or it is in Runtime):",
        used.runtime_table(cores),
    )
    table = textwrap.indent("\n".join(tables), "    ")
    raise OutOfDeviceMemoryError(
        f"needs {used.total_bytes / _GIB:.2f} GiB of the {used.capacity_bytes / _GIB:.2f} GiB of HBM "
        f"on {'the core' if program.num_cores == 1 else f'each of {program.num_cores} cores'} of "
        f"{spec.name}\n{table}",
        op=f"program {program.name}",
        fix=_advice(used, program.num_cores, spec),
    )


def _advice(used: DeviceMemory, num_cores: int, spec: InstanceSpec) -> str:
    larger = [name for name in ALL_INSTANCES if load_instance(name).cores > spec.cores]
    found = smallest(used, num_cores, [spec.name, *larger], spec.family)
    if found is None:
        family = spec.family.capitalize()
        return f"no {family} instance should hold it at any tp_degree: use a smaller batch, sequence or type"
    where = "" if found[0] == spec.name else f" on {found[0]}"
    return f"tp_degree={found[1]}{where} should fit (an estimate); or use a smaller batch or type"


def smallest(
    used: DeviceMemory, num_cores: int, instances: Sequence[str], family: str
) -> tuple[str, int] | None:
    """The first instance of the family, and the least documented degree there, that should hold a program.

    An estimate from its memory ``used`` on ``num_cores``: what is sharded is divided anew, what is
    replicated stays. None where no instance would do.
    """
    for spec in map(load_instance, instances):
        for degree in load_links(family).documented_degrees:
            if spec.family == family and degree <= spec.cores and _fits(used, num_cores, degree):
                return spec.name, degree
    return None


def _fits(used: DeviceMemory, num_cores: int, degree: int) -> bool:
    fixed = used.microcode_bytes + used.runtime_bytes + used.replicated_bytes
    sharded = used.total_bytes - fixed
    return fixed + sharded * num_cores / degree <= used.capacity_bytes


def _staging_bytes(program: Program) -> int:
    sizes = {buffer.id: buffer.tensor.size_bytes for buffer in program.buffers}
    chunks = [
        2 * -(-sum(sizes[number] for number in step.operands) // min(len(group) for group in step.groups))
        for step in _collectives(program.main)
        if step.kind in _REDUCING
    ]
    return max(chunks, default=0)


def _collectives(block: Block) -> Iterator[Collective]:
    for step in block.steps:
        if isinstance(step, Collective):
            yield step
        for nested in nested_blocks(step):
            yield from _collectives(nested)
