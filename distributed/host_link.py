"""What a request costs beside the device: the launch from the host, its inputs and results over PCIe."""

from kernels.hardware import LinkSpec

__all__ = ["request_s"]


def request_s(device_s: float, links: LinkSpec, *, bytes_in: int = 0, bytes_out: int = 0) -> float:
    """Seconds from request to result on an otherwise idle device.

    Args:
      device_s: one run of the program, of ``time_program``.
      bytes_in: what the host sends for this request (weights are there already); ``bytes_out``: what it gets.
    """
    return links.launch_s + (bytes_in + bytes_out) / links.host_bytes_per_s + device_s
