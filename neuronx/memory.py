"""What a program keeps in the HBM of each core, in JAX's words and in the machine's."""

from collections.abc import Mapping
from dataclasses import dataclass

from distributed.device_memory import DeviceMemory, hbm_table, smallest
from distributed.program import Program
from kernels.hardware import ALL_INSTANCES, load_instance, load_links

__all__ = ["MemoryStats", "memory_stats"]


@dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """Bytes on each core; ``print`` shows the table. The first eleven fields are JAX's CompiledMemoryStats'.

    Attributes:
      generated_code_size_in_bytes: the micro-code every program loads.
      argument_size_in_bytes: arguments and captured constants.
      output_size_in_bytes: results, those in the memory of donated arguments included.
      alias_size_in_bytes: results in the memory of donated arguments.
      temp_size_in_bytes: values in between, at their peak, and buffers of collectives.
      peak_memory_in_bytes: arguments, results and temporaries at their peak.
      peak_hbm_bytes: the same with the micro-code and what the runtime takes.
      hbm_bytes_by_use: what fills ``peak_hbm_bytes``. Weights are captured arrays and undonated
        arguments inside a container; what is donated are caches, and in training what is updated.
      hbm_capacity_bytes: what one core has.
      cores_per_chip: of those the program runs on, which share a chip.
      smallest: the instance of the family, and the tp_degree there, that should hold the program on the
        least (an estimate), or None.
    """

    generated_code_size_in_bytes: int
    argument_size_in_bytes: int
    output_size_in_bytes: int
    alias_size_in_bytes: int
    temp_size_in_bytes: int
    peak_memory_in_bytes: int
    host_generated_code_size_in_bytes: int = 0
    host_argument_size_in_bytes: int = 0
    host_output_size_in_bytes: int = 0
    host_alias_size_in_bytes: int = 0
    host_temp_size_in_bytes: int = 0
    peak_hbm_bytes: int
    hbm_bytes_by_use: Mapping[str, int]
    hbm_capacity_bytes: int
    cores_per_chip: int
    smallest: tuple[str, int] | None

    def __str__(self) -> str:
        table = hbm_table(self.hbm_bytes_by_use, self.hbm_capacity_bytes, self.cores_per_chip)
        if self.smallest is None:
            return f"{table}\nfits"
        instance, degree = self.smallest
        return f"{table}\nfits; the least that should hold it: tp_degree={degree} on {instance} (an estimate)"


def memory_stats(program: Program, used: DeviceMemory, instance: str) -> MemoryStats:
    """The statistics of ``program`` on an ``instance``, whose memory was added up as ``used``."""
    sizes = {buffer.id: buffer.tensor.size_bytes for buffer in program.buffers}
    results = program.main.results
    family = load_instance(instance).family
    return MemoryStats(
        generated_code_size_in_bytes=used.microcode_bytes,
        argument_size_in_bytes=used.weights_bytes + used.donated_bytes + used.inputs_bytes,
        output_size_in_bytes=sum(sizes[number] for number in results),
        alias_size_in_bytes=sum(sizes[results[output]] for output, _ in program.aliases),
        temp_size_in_bytes=used.temporaries_bytes + used.collective_buffers_bytes,
        peak_memory_in_bytes=used.total_bytes - used.microcode_bytes - used.runtime_bytes,
        peak_hbm_bytes=used.total_bytes,
        hbm_bytes_by_use=used.uses,
        hbm_capacity_bytes=used.capacity_bytes,
        cores_per_chip=min(program.num_cores, load_links(family).cores_per_chip),
        smallest=smallest(used, program.num_cores, ALL_INSTANCES, family),
    )
