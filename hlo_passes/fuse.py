"""LOCAL to FUSED: groups ops into kernels, each a ``stablehlo.composite "neuron.<kernel>"``."""

from dataclasses import dataclass

from hlo_passes.clusters import Clusters
from hlo_passes.folded import Layers, layers
from hlo_passes.graph import Graph, Node
from hlo_passes.ir import ir, main, source_line
from hlo_passes.ops import CONTROL, holds_collective, is_scalar, kind, operations, terminator
from hlo_passes.outline import Outliner
from hlo_passes.patterns import NEARBY, RULES, Join, Region, is_free, kernel_name, region_of
from hlo_passes.prepare import prepare
from hlo_passes.units import uniform_first
from hlo_passes.varying import Varying, analyze
from kernels.errors import CompileError

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``epilogues`` False leaves every op a kernel of its own, to see what fusion is worth."""

    epilogues: bool = True


def run(module: ir.Module, options: Options) -> None:
    """Outlines every op of ``main`` but collectives, control flow around them and scalar index arithmetic.

    A kernel is convex, computes only values that are equal on all cores or only values that are not, and
    holds what the rules of ``patterns`` allow. Constants, iotas, broadcasts and reshapes are made again in
    each kernel that reads them.
    """
    with module.context, ir.Location.unknown():
        function = main(module)
        prepare(function)
        outliner = Outliner(module)
        _fuse_block(function.entry_block, {}, analyze(module), outliner, options, layers(function))
        outliner.finish()
        uniform_first(function.entry_block, analyze(module))


def _fuse_block(
    block: ir.Block,
    outer_free: dict[ir.Value, ir.Operation],
    varying: Varying,
    outliner: Outliner,
    options: Options,
    equal: Layers,
) -> None:
    _fuse_inner_blocks(block, outer_free, varying, outliner, options)
    graph = Graph(block, outer_free, equal)
    clusters, regions = _grow(graph, varying, options)
    end = terminator(block)
    for cluster in clusters.order:
        members = clusters.members[cluster]
        op = graph.nodes[members[0]].op
        if cluster not in regions or _stays_scalar(graph, members):
            for number in members:
                graph.nodes[number].op.move_before(end)
        else:
            outliner.outline(graph, members, _kernel(graph, members, regions[cluster]), end)
    for op in reversed(operations(block)):
        if is_free(op) and next(iter(op.results[0].uses), None) is None:
            op.erase()


def _kernel(graph: Graph, members: list[int], region: Region) -> str:
    kinds = tuple(graph.nodes[number].kind for number in members)
    name = kernel_name(region.group, kinds) or kernel_name("single", kinds)
    if name is None:
        op = graph.nodes[members[0]].op
        raise CompileError(
            "no kernel takes this op", op=op.name, location=source_line(op), fix="express it in StableHLO ops"
        )
    return name


def _fuse_inner_blocks(
    block: ir.Block,
    outer_free: dict[ir.Value, ir.Operation],
    varying: Varying,
    outliner: Outliner,
    options: Options,
) -> None:
    free = dict(outer_free)
    for op in operations(block):
        if is_free(op):
            free[op.results[0]] = op
        elif kind(op) in CONTROL and holds_collective(op):
            for region in op.regions:
                _fuse_block(region.blocks[0], free, varying, outliner, options, Layers())


def _stays_scalar(graph: Graph, members: list[int]) -> bool:
    """Scalar arithmetic that joined no kernel is the control CPU's: a kernel would cost more than it."""
    for number in members:
        node = graph.nodes[number]
        values = [*node.op.results, *node.op.operands]
        if node.group != "elementwise" or not all(is_scalar(value) for value in values):
            return False
        if any(kind(graph.free[v]) != "constant" for v in node.op.operands if v in graph.free):
            return False
    return True


def _grow(graph: Graph, varying: Varying, options: Options) -> tuple[Clusters, dict[int, Region]]:
    """Merges node after node with the makers of its operands, nearest first, where a rule joins them."""
    predecessors = graph.predecessors()
    clusters, regions = Clusters(predecessors), {}
    for number, node in enumerate(graph.nodes):
        if node.group is None:
            continue
        differs = any(varying.is_varying(result) for result in node.op.results)
        regions[number] = region_of(node.op, node.group, differs)
        if not options.epilogues:
            continue
        received = _receives(graph, node)
        makers = {clusters.of[before] for before in predecessors[number]}
        for producer in sorted(makers, key=clusters.position, reverse=True):
            if received and producer in regions and regions[producer].group in _PRODUCTS:
                continue
            _try_merge(graph, clusters, regions, producer, number)
    return clusters, regions


# A product is not held up by what its epilogue waits for from another core: that is what overlaps them.
_PRODUCTS = frozenset({"matmul", "convolution"})


def _receives(graph: Graph, node: Node) -> bool:
    """Whether an op reads what a collective_permute brings."""
    makers = (graph.maker[value] for value in node.reads if value in graph.maker)
    return any(graph.nodes[number].kind == "collective_permute" for number in makers)


def _try_merge(
    graph: Graph, clusters: Clusters, regions: dict[int, Region], producer: int, number: int
) -> None:
    consumer = clusters.of[number]
    made, taker = regions.get(producer), regions[consumer]
    if made is None or producer == consumer or made.varying != taker.varying:
        return
    rule = RULES.get((made.group, taker.group))
    if rule is None:
        return
    readers = _readers(graph, clusters, producer)
    reader_kinds = frozenset(graph.nodes[reader].kind for reader in readers if reader >= 0)
    sole = readers <= set(clusters.members[consumer])
    distant = sum(not 0 <= distance <= NEARBY for distance in graph.distances(producer, readers))
    join = Join(producer=made, consumer=taker, reader_kinds=reader_kinds, sole=sole, readers=distant + 1)
    if not rule.when(join):
        return
    merged = _united(made, taker, rule.becomes)
    if kernel_name(merged.group, merged.kinds) is not None and clusters.merge(producer, consumer):
        del regions[producer]
        regions[consumer] = merged


def _readers(graph: Graph, clusters: Clusters, cluster: int) -> set[int]:
    members = clusters.members[cluster]
    found: set[int] = set()
    for number in members:
        for result in graph.nodes[number].op.results:
            found |= graph.readers.get(result, set())
    return found.difference(members)


def _united(producer: Region, consumer: Region, group: str) -> Region:
    """The region of both; its extent is that of the part whose class it keeps."""
    extent = producer if producer.group == group and consumer.group != group else consumer
    if producer.group == consumer.group == "reduce":
        extent = producer
    return Region(
        group=group,
        kinds=producer.kinds + consumer.kinds,
        varying=producer.varying,
        size=extent.size,
        rows=extent.rows,
        signature=extent.signature,
        integer=producer.integer and consumer.integer,
    )
