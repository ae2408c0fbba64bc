"""What a program keeps in the HBM of each core, in JAX's words and in the machine's."""

from collections.abc import Mapping
from dataclasses import dataclass

from distributed.device_memory import DeviceMemory
from distributed.program import Program

__all__ = ["MemoryStats", "memory_stats"]


@dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """Bytes on each core. The first eleven fields are those of JAX's CompiledMemoryStats.

    Attributes:
      generated_code_size_in_bytes: the micro-code every program loads.
      argument_size_in_bytes: arguments and captured constants.
      output_size_in_bytes: results, those in the memory of donated arguments included.
      alias_size_in_bytes: results in the memory of donated arguments.
      temp_size_in_bytes: values in between, at their peak, and buffers of collectives.
      peak_memory_in_bytes: arguments, results and temporaries at their peak.
      peak_hbm_bytes: the same with the micro-code and what the runtime takes.
      hbm_bytes_by_use: what fills ``peak_hbm_bytes``. Weights are captured arrays and undonated
        arguments inside a container; arguments given directly, and donated ones, are inputs.
      hbm_capacity_bytes: what one core has.
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


def memory_stats(program: Program, used: DeviceMemory) -> MemoryStats:
    """The statistics of ``program``, whose memory was added up as ``used``."""
    sizes = {buffer.id: buffer.tensor.size_bytes for buffer in program.buffers}
    results = program.main.results
    by_use = {
        "weights": used.weights_bytes,
        "inputs": used.inputs_bytes,
        "outputs": used.outputs_bytes,
        "temporaries": used.temporaries_bytes,
        "collective buffers": used.collective_buffers_bytes,
        "micro-code": used.microcode_bytes,
        "runtime": used.runtime_bytes,
    }
    assert sum(by_use.values()) == used.total_bytes, "the uses add up to the total"
    return MemoryStats(
        generated_code_size_in_bytes=used.microcode_bytes,
        argument_size_in_bytes=used.weights_bytes + used.inputs_bytes,
        output_size_in_bytes=sum(sizes[number] for number in results),
        alias_size_in_bytes=sum(sizes[results[output]] for output, _ in program.aliases),
        temp_size_in_bytes=used.temporaries_bytes + used.collective_buffers_bytes,
        peak_memory_in_bytes=used.planned_bytes + used.collective_buffers_bytes,
        peak_hbm_bytes=used.total_bytes,
        hbm_bytes_by_use=by_use,
        hbm_capacity_bytes=used.capacity_bytes,
    )
