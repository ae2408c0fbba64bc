"""The profile: a summary people can read and a trace Perfetto opens, both from shapes alone."""

import collections
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import neuronx
from distributed.analysis import critical_path, kernel_rows, mbu, mfu
from distributed.trace import to_trace

SOURCE = Path(__file__).read_text().splitlines()


def mlp(params, x):
    return jax.nn.softmax(jax.nn.relu(x @ params["up"]) @ params["down"])


def scanned_mlp(params, x):
    return jax.lax.fori_loop(0, 3, lambda _, x: mlp(params, x), x)


def profile(tp, fn=mlp):
    params = {
        "up": jax.ShapeDtypeStruct((512, 2048), jnp.bfloat16),
        "down": jax.ShapeDtypeStruct((2048, 512), jnp.bfloat16),
    }
    x = jax.ShapeDtypeStruct((128, 512), jnp.bfloat16)
    return neuronx.compile(fn, tp_degree=tp).lower(params, x).compile().profile()


@pytest.fixture(scope="module")
def sharded():
    return profile(4)


def test_the_summary_names_engines_kernels_and_lines(sharded):
    text = sharded.summary()
    assert text.startswith("mlp on 4 cores of inf2.48xlarge: ")
    for word in ("pe ", "dma ", "collective ", "matmul", "all_reduce", "test_profile.py:", "collectives: "):
        assert word in text, word


def test_lines_are_the_models_not_its_librarys():
    nn = pytest.importorskip("flax.linen", reason="needs the extra [models]")
    model = nn.Dense(64)

    def forward(params, x):
        return model.apply(params, x)

    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    rows = neuronx.compile(forward).lower(params, x).compile().profile().to_json()["kernels"]
    assert rows and all("test_profile.py:" in row["location"] for row in rows)


def test_the_shares_are_of_the_total(sharded):
    shares = [float(share) for share in re.findall(r"(\d+\.\d)%", sharded.summary())]
    assert shares and all(0 <= share <= 100 for share in shares)


def test_one_core_has_no_collectives():
    assert "collectives: 0.0 ns, 0.0% of the total" in profile(1).summary()


def test_assumptions_are_said():
    def until_small(params, x):
        return jax.lax.while_loop(lambda v: jnp.sum(v) > 1, lambda v: v @ params["up"][:, :512], x)

    text = profile(2, until_small).summary()
    assert "assumed: " in text and "trip count" in text


def test_a_scan_over_layers_takes_as_long_as_the_layers():
    """Their weights are read once, whether one loop slices them or each product takes its own."""

    def scanned(params, x):
        return jax.lax.scan(lambda x, layer: (mlp(layer, x), None), x, params)[0]

    def unrolled(params, x):
        for number in range(6):
            x = mlp({name: stack[number] for name, stack in params.items()}, x)
        return x

    stacks = {"up": (6, 512, 2048), "down": (6, 2048, 512)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in stacks.items()}
    x = jax.ShapeDtypeStruct((128, 512), jnp.bfloat16)
    loop, layers = (
        neuronx.compile(fn).lower(params, x).compile().profile().timeline for fn in (scanned, unrolled)
    )
    assert loop.bytes_accessed == pytest.approx(layers.bytes_accessed, rel=0.02)
    assert loop.busy_s["dma"] == pytest.approx(layers.busy_s["dma"], rel=0.02)
    assert loop.total_s == pytest.approx(layers.total_s, rel=0.1)
    [row] = kernel_rows(loop)
    parts = {part.name: part for part in row.parts}
    assert parts["dot_general"].count == 12 and parts["dot_general"].engine == "pe"
    assert parts["dot_general"].seconds <= loop.busy_s["pe"]
    assert parts["dynamic_slice"].seconds == pytest.approx(loop.busy_s["dma"], rel=0.02)
    product = next(number for number, line in enumerate(SOURCE, 1) if "softmax(" in line)
    assert parts["dot_general"].location.endswith(f"test_profile.py:{product}")


def test_the_trace_is_chromes_format(sharded, tmp_path):
    path = tmp_path / "x.trace.json"
    sharded.save(path)
    trace = json.loads(path.read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    last = max(event["ts"] + event["dur"] for event in events)
    total_us = pytest.approx(sharded.timeline.total_s * 1e6, abs=1e-3)
    assert last == total_us
    threads = {e["args"]["name"]: e["tid"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert {"pe", "dma", "collective"} <= threads.keys()
    on_path = [event["dur"] for event in events if event["tid"] == threads["critical path"]]
    assert sum(on_path) == total_us
    assert len(events) - len(on_path) == len(sharded.timeline.events)


def arrows(trace):
    """(category, name, cause, effect) as Perfetto joins them: slices, of whole nanoseconds, do not overlap on
    a thread, and each end of an arrow lies in one."""
    slices = collections.defaultdict(list)
    ends = collections.defaultdict(dict)
    for record in trace["traceEvents"]:
        if record["ph"] == "X":
            start = round(record["ts"] * 1e3)
            slices[record["tid"]].append((start, start + round(record["dur"] * 1e3), record["name"]))
        elif record["ph"] in "sf":
            assert record["ph"] == "s" or record["bp"] == "e"
            ends[record["cat"], record["name"], record["id"]][record["ph"]] = record
    for found in slices.values():
        found.sort()
        assert all(end <= start for (_, end, _), (start, _, _) in itertools.pairwise(found))
    for (category, name, _), both in ends.items():
        bound = []
        for phase in "sf":
            at = round(both[phase]["ts"] * 1e3)
            [around] = [s for s in slices[both[phase]["tid"]] if s[0] <= at < s[1]]
            bound.append(around)
        yield category, name, *bound


@pytest.mark.parametrize("fn", [mlp, scanned_mlp])
def test_arrows_lead_from_cause_to_effect(fn):
    found = profile(4, fn)
    timeline, drawn = found.timeline, list(arrows(to_trace(found.timeline)))
    assert all(cause[1] <= effect[0] for _, _, cause, effect in drawn)
    assert sum(name != "load" for _, name, _, _ in drawn) == sum(run.after >= 0 for run in timeline.runs)
    joined = {(cause[2], effect[2]) for _, _, cause, effect in drawn}
    assert ("matmul", "all_reduce") in joined and len(drawn) <= 2 * len(timeline.runs)
    # What ends a step of the critical path, of a loop its last iteration, begins the next.
    critical = [(cause[2], effect[2]) for category, _, cause, effect in drawn if category == "critical path"]
    steps = [step.run.name for step in critical_path(timeline)]
    assert [effect for _, effect in critical] == steps[1:]
    assert all(
        cause in (step, "2 more iterations") for (cause, _), step in zip(critical, steps, strict=False)
    )


def test_arrows_of_loads_end_where_their_kernel_begins(sharded):
    loads = [ends for _, name, *ends in arrows(to_trace(sharded.timeline)) if name == "load"]
    assert loads and all(cause[2] == effect[2] and cause[1] <= effect[0] for cause, effect in loads)


# Of a type of jaxlib; Python 3.13 warns where jaxlib can only abort.
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
def test_tensorboards_folder_is_read_by_xla(sharded, tmp_path):
    path = sharded.save_tensorboard(tmp_path)
    assert path.parent == tmp_path / "plugins" / "profile" / "mlp_4_cores_of_inf2.48xlarge"
    assert sharded.save_tensorboard(tmp_path, run="mine").parent.name == "mine"
    plane, host = jax.profiler.ProfileData.from_file(str(path)).planes
    assert dict(host.stats)["hbm_utilization_percent"] == 100 * mbu(sharded.timeline)
    assert dict(host.stats)["matrix_unit_utilization_percent"] == 100 * mfu(sharded.timeline)
    peaks = {"peak_teraflops_per_second": 92.0, "peak_hbm_bw_gigabytes_per_second": 410.0}
    assert dict(plane.stats) == {"device_type_string": "one core of inf2.48xlarge, simulated"} | peaks
    lines = {line.name: list(line.events) for line in plane.lines}
    for [whole] in (lines.pop("Steps"), lines.pop("XLA Modules")):
        assert whole.duration_ns == pytest.approx(sharded.timeline.total_s * 1e9, abs=1)
    assert len(lines.pop("XLA Ops")) == len(sharded.timeline.runs)
    assert list(lines)[:4] == ["pe", "vector", "scalar", "dma"]
    assert lines.keys() == {event.engine for event in sharded.timeline.events}
    for engine, found in lines.items():
        wanted = [event for event in sharded.timeline.events if event.engine == engine]
        assert [event.name for event in found] == [event.name for event in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one.start_ns == pytest.approx(other.start_s * 1e9, abs=1)
            assert one.duration_ns == pytest.approx((other.end_s - other.start_s) * 1e9, abs=1)
            assert dict(one.stats).get("location", "") == other.location
            assert dict(one.stats).get("bytes", 0) == round(other.bytes)


def fields(message):
    """The fields of a protobuf message by number, as its encoding says."""
    found, rest = collections.defaultdict(list), iter(message)

    def varint():
        groups = []
        while not groups or groups[-1] & 0x80:
            groups.append(next(rest))
        return sum((group & 0x7F) << 7 * place for place, group in enumerate(groups))

    while rest.__length_hint__():
        number, kind = divmod(varint(), 8)
        if kind == 0:
            found[number].append(varint())
        else:
            found[number].append(bytes(itertools.islice(rest, 8 if kind == 1 else varint())))
    return found


def nested_mlp(params, x):
    return jax.lax.fori_loop(0, 2, lambda _, x: scanned_mlp(params, x) + 1, x)


@pytest.mark.parametrize("fn", [mlp, scanned_mlp, nested_mlp])
def test_ops_in_tensorboards_folder_are_the_kernels(fn, tmp_path):
    """Counts, times, flops and bytes by name and line, loops in full; numbers are those of xplane.proto."""
    found = profile(4, fn)
    plane = fields(fields(found.save_tensorboard(tmp_path).read_bytes())[1][0])
    stat_names, ops = ([fields(fields(entry)[2][0]) for entry in plane[number]] for number in (5, 4))
    names = {entry[1][0]: entry[2][0].decode() for entry in stat_names}
    about = {
        op[1][0]: {names[stat[1][0]]: (stat[3] or stat[5] or stat[6])[0] for stat in map(fields, op[5])}
        for op in ops
    }
    [events] = (fields(line)[4] for line in plane[3] if fields(line)[2][0] == b"XLA Ops")
    sums = collections.defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for event in map(fields, events):
        said, sum_of = about[event[1][0]], (1, event[3][0] / 1e12)
        row = sums[said["hlo_category"].decode(), said["source"].decode()]
        row[:] = map(sum, zip(row, (*sum_of, said["flops"], said["bytes_accessed"]), strict=True))
    rows = kernel_rows(found.timeline)
    moved = [row.bytes if row.kind == "kernel" else 0 for row in rows]
    assert sums == {
        (row.name, row.location): pytest.approx([row.count, row.seconds, row.flops, size], rel=1e-6)
        for row, size in zip(rows, moved, strict=True)
    }


# Of a type of jaxlib; Python 3.13 warns where jaxlib can only abort.
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
def test_of_very_long_loops_the_further_iterations_are_one_op(tmp_path, monkeypatch):
    monkeypatch.setattr("distributed.xplane._MOST_OPS", 10)
    found = profile(4, scanned_mlp)
    plane, _ = jax.profiler.ProfileData.from_file(str(found.save_tensorboard(tmp_path))).planes
    [ops] = (list(line.events) for line in plane.lines if line.name == "XLA Ops")
    [further] = (op for op in ops if op.name == "2 more iterations")
    assert len(ops) == len(found.timeline.runs) + 1
    [event] = {(e.start_s, e.end_s) for e in found.timeline.events if e.name == further.name}
    assert further.duration_ns == pytest.approx((event[1] - event[0]) * 1e9, abs=1)


def test_no_event_overlaps_another_on_its_engine(sharded):
    ends: dict[str, float] = {}
    for event in sorted(sharded.timeline.events, key=lambda e: e.start_s):
        assert event.start_s >= ends.get(event.engine, 0.0) - 1e-15
        ends[event.engine] = event.end_s


def test_json_agrees_with_the_timeline(sharded, tmp_path):
    path = tmp_path / "x.json"
    sharded.save_json(path)
    found = json.loads(path.read_text())
    assert found["total_s"] == sharded.timeline.total_s and found["era"] == "sdk-2.18"
    assert sum(row["flops"] for row in found["kernels"]) == pytest.approx(found["flops"])
    assert found["critical_path"][-1]["end_s"] == found["total_s"]
    whole = sum((step["waited_s"] + step["seconds"]) * step["iterations"] for step in found["critical_path"])
    assert whole == pytest.approx(found["total_s"])
    assert 0 <= found["exposed_collective_share"] <= found["collective_share"] * (1 + 1e-9)


def test_the_page_needs_nothing_else(sharded, tmp_path):
    path = tmp_path / "x.html"
    sharded.save_html(path)
    page = path.read_text()
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", page)
    data = json.loads(re.search(r"^const data = (.*);$", page, re.MULTILINE)[1].replace("<\\/", "</"))
    assert len(data["events"]) == len(sharded.timeline.events) and data["left_out"] == 0


def test_eras_are_an_option_of_compile():
    x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)
    slow, fast = (
        neuronx.compile(lambda x: x @ x, era=era).lower(x).compile().profile().timeline
        for era in ("sdk-2.18", "ideal")
    )
    assert (slow.era, fast.era) == ("sdk-2.18", "ideal") and fast.total_s < slow.total_s
    with pytest.raises(neuronx.CompileError, match="sdk-2"):
        neuronx.compile(lambda x: x, era="sdk-9")
