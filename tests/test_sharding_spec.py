"""How shardings are read from attributes: sub-axes become axes, as far as one mesh can hold them all."""

from hlo_passes.ir import ir, parse
from hlo_passes.sharding.spec import MeshReader


def _read(*dims: str, size: int) -> tuple[tuple[tuple[str, int], ...], list[tuple[tuple[str, ...], ...]]]:
    module = parse(f'sdy.mesh @m = <["x"={size}]>')
    reader = MeshReader(module)
    with module.context:
        attributes = [ir.Attribute.parse(f"#sdy.sharding<@m, [{{{dim}}}]>") for dim in dims]
    for attribute in attributes:
        reader.note_cuts(attribute)
    return reader.mesh().axes, [reader.axes(attribute) for attribute in attributes]


def test_nested_sub_axes_share_a_mesh() -> None:
    axes, shardings = _read('"x":(1)2', '"x":(2)2', '"x"', size=8)
    assert axes == (("x:(1)2", 2), ("x:(2)2", 2), ("x:(4)2", 2))
    assert shardings == [(("x:(1)2",),), (("x:(2)2",),), (("x:(1)2", "x:(2)2", "x:(4)2"),)]


def test_cuts_that_do_not_nest_leave_the_later_whole() -> None:
    axes, shardings = _read('"x":(1)3', '"x":(1)2', '"x"', size=6)
    assert axes == (("x:(1)2", 2), ("x:(2)3", 3))
    assert shardings == [((),), (("x:(1)2",),), (("x:(1)2", "x:(2)3"),)]
