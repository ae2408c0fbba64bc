"""Shardy's and XLA's partitioners on an annotated module. Either may end its process: give it one."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from jax._src.lib import _jax
from jaxlib import lapack, xla_client

from hlo_passes.ir import ir, main, parse, run_mlir_passes

__all__ = ["PARTITIONERS"]

_SHARDY_PASSES = (
    "sdy-propagation-pipeline",
    "func.func(sdy-insert-explicit-reshards{enable-full-version=true})",
    "sdy-resolve-permutation-factors",
    "func.func(sdy-reshard-to-collectives)",
    "func.func(sdy-pad-for-divisibility)",
    "sdy-convert-global-to-local",
    "cse,canonicalize,cse",
)


def _shardy(text: str, cores: int) -> ir.Module:
    """The passes of the open Shardy repository, as jaxlib carries them."""
    module = parse(text)
    for pipeline in _SHARDY_PASSES:
        run_mlir_passes(module, pipeline)
    return module


def _xla(text: str, cores: int) -> ir.Module:
    """XLA's SPMD partitioner on a private CPU client; what it leaves is read from its dump."""
    lapack._lapack.initialize()
    client = _jax.get_tfrt_cpu_client(num_devices=cores)
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = 1, cores
    build = options.executable_build_options
    build.num_replicas, build.num_partitions = 1, cores
    build.use_spmd_partitioning = build.use_shardy_partitioner = True
    module = parse(text)
    arguments = len(main(module).arguments)
    build.allow_spmd_sharding_propagation_to_parameters = [True] * max(arguments, 1)
    build.allow_spmd_sharding_propagation_to_output = [True]
    with tempfile.TemporaryDirectory() as directory:
        options.env_option_overrides = [
            ("xla_dump_to", directory),
            ("xla_dump_hlo_pass_re", "spmd-partitioning"),
            ("xla_dump_hlo_as_proto", "True"),
        ]
        client.compile_and_load(text.encode(), xla_client.DeviceList(tuple(client.local_devices())), options)
        (dump,) = Path(directory).glob("*after_spmd-partitioning*.hlo.pb")
        return parse(_jax.mlir.hlo_to_stablehlo(_first_field(dump.read_bytes())))


def _first_field(data: bytes) -> bytes:
    """The first, length-delimited field of a protocol buffer: the HloModuleProto of an HloProto."""
    length = shift = 0
    for position in range(1, 11):
        length |= (data[position] & 0x7F) << shift
        shift += 7
        if not data[position] & 0x80:
            return data[position + 1 : position + 1 + length]
    raise ValueError("no protocol buffer")


PARTITIONERS: dict[str, Callable[[str, int], ir.Module]] = {"shardy": _shardy, "xla": _xla}
