"""The closed forms against SCALE-Sim's totals, a cycle-by-cycle array, and counts done by walking the folds."""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.dataflow.cost_model import Counts
from kernels.implementation.dataflow.input_stationary import InputStationary
from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.output_stationary import OutputStationary
from kernels.implementation.dataflow.systolic import IdealArray, SystolicArray
from kernels.implementation.dataflow.weight_stationary import WeightStationary

DATAFLOWS = [OutputStationary, WeightStationary, InputStationary]
small = st.integers(1, 9)

# Totals that SCALE-Sim 3.0.0 prints, for output-, weight- and input-stationary.
LARGE = [  # 32 x 32, three buffers of 1024 KiB
    (Layer.gemm(256, 256, 256), (20351, 22399, 22399)),
    (Layer.gemm(128, 1000, 512), (73471, 113663, 70015)),
    (Layer(64, 64, 58, 58, kernel=3), (125047, 116279, 278711)),
]
SMALL = [  # 4 x 6, three buffers of 64 KiB: strides that leave a window incomplete, tiles that do not fill the array
    (Layer(2, 5, 8, 8, kernel=3, stride=2), (103, 139, 254)),
    (Layer(3, 7, 9, 9, kernel=3), (909, 853, 1196)),
    (Layer(4, 6, 11, 11, kernel=5, stride=3), (323, 524, 899)),
    (Layer.gemm(13, 10, 9), (135, 149, 197)),
    (Layer.gemm(4, 4, 4), (11, 15, 15)),
    (Layer.gemm(1, 7, 33), (81, 233, 170)),
]


@pytest.mark.parametrize(("layer", "totals"), LARGE)
def test_totals_of_scale_sim(layer, totals):
    assert tuple(d(convention="scale-sim").cost(layer).cycles for d in DATAFLOWS) == totals


@pytest.mark.parametrize(("layer", "totals"), SMALL)
def test_totals_of_scale_sim_on_a_small_array(layer, totals):
    arrays = [d(4, 6, 64, 64, 64, convention="scale-sim") for d in DATAFLOWS]
    assert tuple(array.cost(layer).cycles for array in arrays) == totals


class Machine:
    """An array of multipliers that knows nothing but its neighbours: one `tick` is one cycle."""

    def __init__(self, rows: int, columns: int) -> None:
        self.still, self.right, self.down = (np.zeros((rows, columns)) for _ in range(3))
        self.cycles = 0

    def shift_down(self, plane: np.ndarray, top: np.ndarray) -> np.ndarray:
        """Every row moves one down, `top` enters; what leaves at the bottom is returned."""
        leaving = plane[-1].copy()
        plane[1:], plane[0] = plane[:-1].copy(), top
        return leaving

    def load(self, tile: np.ndarray) -> None:
        for row in tile[::-1]:
            self.shift_down(self.still, row)
            self.cycles += 1

    def tick_stationary_operand(self, left: np.ndarray) -> np.ndarray:
        """Operands step right, partial sums fall by one row and meet the still operand; returns what falls out."""
        self.right[:, 1:], self.right[:, 0] = self.right[:, :-1].copy(), left
        self.shift_down(self.down, np.zeros(self.down.shape[1]))
        self.down += self.still * self.right
        self.cycles += 1
        return self.down[-1].copy()

    def tick_stationary_output(self, left: np.ndarray, top: np.ndarray) -> None:
        self.right[:, 1:], self.right[:, 0] = self.right[:, :-1].copy(), left
        self.shift_down(self.down, top)
        self.still += self.right * self.down
        self.cycles += 1


def padded(tile: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.pad(tile, ((0, rows - tile.shape[0]), (0, columns - tile.shape[1])))


def run_stationary_operand(still: np.ndarray, stream: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """(stream @ still, cycles): tiles of `still` (k x c) held, rows of `stream` (t x k) fed in one after another."""
    (k, c), t = still.shape, stream.shape[0]
    result, cycles = np.zeros((t, c)), 0
    for c0 in range(0, c, columns):
        for k0 in range(0, k, rows):
            machine = Machine(rows, columns)
            machine.load(padded(still[k0 : k0 + rows, c0 : c0 + columns], rows, columns))
            feed = padded(stream[:, k0 : k0 + rows], t, rows)
            collected = 0
            while collected < t * columns:  # row r of the array lags by r, column j finishes j later
                now = machine.cycles - rows
                left = [feed[now - r, r] if 0 <= now - r < t else 0 for r in range(rows)]
                fallen = machine.tick_stationary_operand(np.array(left))
                for j in range(columns):
                    row = now - (rows - 1) - j
                    if 0 <= row < t:
                        collected += 1
                        if c0 + j < c:
                            result[row, c0 + j] += fallen[j]
            cycles += machine.cycles
    return result, cycles


def run_stationary_output(a: np.ndarray, b: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """(a @ b, cycles): a tile of outputs held, drained downwards when its last product is in."""
    (m, k), n = a.shape, b.shape[1]
    result, cycles = np.zeros((m, n)), 0
    for n0 in range(0, n, columns):
        for m0 in range(0, m, rows):
            machine = Machine(rows, columns)
            tile_a, tile_b = padded(a[m0 : m0 + rows], rows, k), padded(b[:, n0 : n0 + columns], k, columns)
            for now in range(k + rows - 1 + columns - 1):
                left = [tile_a[r, now - r] if 0 <= now - r < k else 0 for r in range(rows)]
                top = [tile_b[now - j, j] if 0 <= now - j < k else 0 for j in range(columns)]
                machine.tick_stationary_output(np.array(left), np.array(top))
            drained = np.zeros((rows, columns))
            for r in reversed(range(rows)):
                drained[r] = machine.shift_down(machine.still, np.zeros(columns))
                machine.cycles += 1
            part = result[m0 : m0 + rows, n0 : n0 + columns]
            part += drained[: part.shape[0], : part.shape[1]]
            cycles += machine.cycles
    return result, cycles


def tiles(extent: int, step: int) -> list[int]:
    """Sizes of the pieces that an extent is cut into."""
    return [min(step, extent - start) for start in range(0, extent, step)]


@given(m=small, n=small, k=small, rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_on_chip_accesses_counted_fold_by_fold(m, n, k, rows, columns):
    """Of inputs, filters and outputs; partial sums are written, and from the second row tile on read before."""
    counted = {dataflow: np.zeros(3, int) for dataflow in DATAFLOWS}
    for c in tiles(n, columns):
        for r in tiles(m, rows):
            counted[OutputStationary] += r * k, k * c, r * c  # both stream past, what is finished drains once
        for i, r in enumerate(tiles(k, rows)):
            counted[WeightStationary] += m * r, r * c, m * c * (2 if i else 1)  # inputs stream past loaded weights
    for c in tiles(m, columns):
        for i, r in enumerate(tiles(k, rows)):
            counted[InputStationary] += r * c, r * n, c * n * (2 if i else 1)  # filters stream past loaded inputs
    for dataflow, (ifmap, filters, ofmap) in counted.items():
        sram = dataflow(rows, columns).cost_gemm(m, n, k).sram
        assert (sram.ifmap, sram.filter, sram.ofmap) == (ifmap, filters, 4 * ofmap)


@settings(max_examples=40, deadline=None)
@given(m=small, n=small, k=small, rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_cycles_of_an_array_run_cycle_by_cycle(m, n, k, rows, columns):
    rng = np.random.default_rng([m, n, k])
    a, b = rng.integers(-9, 9, (m, k)).astype(float), rng.integers(-9, 9, (k, n)).astype(float)
    runs = {
        OutputStationary: run_stationary_output(a, b, rows, columns),
        WeightStationary: run_stationary_operand(b, a, rows, columns),
        InputStationary: [
            x.T if isinstance(x, np.ndarray) else x for x in run_stationary_operand(a.T, b.T, rows, columns)
        ],
    }
    for dataflow, (product, cycles) in runs.items():
        assert np.array_equal(product, a @ b), dataflow
        assert dataflow(rows, columns).cost_gemm(m, n, k).cycles == cycles, dataflow


def windows(layer: Layer) -> np.ndarray:
    """Address of the input under each tap of each window of a group, -1 in the padding; by loops over pixels."""
    assert isinstance(layer.kernel, int) and isinstance(layer.stride, int) and isinstance(layer.padding, int)
    h, w = layer.output_size()
    table = []
    for y in range(h):
        for x in range(w):
            table.append([])
            for c in range(layer.in_channels // layer.groups):
                for i in range(layer.kernel):
                    for j in range(layer.kernel):
                        r, s = y * layer.stride + i - layer.padding, x * layer.stride + j - layer.padding
                        inside = 0 <= r < layer.height and 0 <= s < layer.width
                        table[-1].append((c * layer.height + r) * layer.width + s if inside else -1)
    return np.array(table)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 3),
    size=st.integers(3, 7),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
)
def test_shape_of_a_convolution_and_the_inputs_it_touches(channels, size, kernel, stride, padding):
    layer = Layer(channels, 4, size, size, kernel, stride, padding)
    table = windows(layer)
    assert layer.gemm_shape() == (table.shape[0], 4, table.shape[1])
    assert IdealArray(2, 2).cost(layer).dram.ifmap == len(set(table.ravel()) - {-1})


def test_inputs_that_a_dilated_kernel_steps_over_are_not_touched():
    for size, kernel, stride, padding, dilation in itertools.product(
        range(1, 8), range(1, 5), range(1, 5), range(4), range(1, 4)
    ):
        if size + 2 * padding > dilation * (kernel - 1):
            layer = Layer(1, 1, size, 1, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
            taps = [y * stride + t * dilation - padding for y in range(layer.output_size()[0]) for t in range(kernel)]
            assert layer.ifmap_elements == len(set(taps) & set(range(size)))


def fewest_fetches(accesses: np.ndarray, room: int) -> int:
    """How often memory must be asked with room for so many words on chip: Belady's rule, keep what is used soonest."""
    order = accesses.tolist()
    upcoming, following = {}, [0] * len(order)
    for now in range(len(order) - 1, -1, -1):
        following[now] = upcoming.get(order[now], len(order))
        upcoming[order[now]] = now
    kept: dict[int, int] = {}
    latest: list[tuple[int, int]] = []
    fetches = 0
    for now, word in enumerate(order):
        if word not in kept:
            fetches += 1
            if len(kept) == room:
                while True:
                    use, other = heapq.heappop(latest)
                    if kept.get(other) == -use:
                        break
                del kept[other]
        kept[word] = following[now]
        heapq.heappush(latest, (-following[now], word))
    return fetches


def inputs_in_order(dataflow: type, table: np.ndarray, n: int, rows: int, columns: int) -> np.ndarray:
    """Addresses of inputs as the folds ask for them."""
    m, k = table.shape
    if dataflow is OutputStationary:
        folds = [table[r : r + rows].T for _ in range(0, n, columns) for r in range(0, m, rows)]
    elif dataflow is WeightStationary:
        folds = [table[:, r : r + rows] for _ in range(0, n, columns) for r in range(0, k, rows)]
    else:
        folds = [table[c : c + columns, r : r + rows] for c in range(0, m, columns) for r in range(0, k, rows)]
    accesses = np.concatenate([fold.ravel() for fold in folds])
    return accesses[accesses >= 0]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize(
    "layer",
    [Layer(4, 8, 16, 16, 3, 1, 1), Layer(8, 8, 16, 16, 3, 2, 1), Layer(4, 8, 18, 12, 5, 1, 2), Layer(8, 8, 14, 14, 1)],
    ids=lambda layer: f"{layer.kernel}x{layer.kernel}/{layer.stride}",
)
def test_inputs_fetched_beside_the_best_that_any_buffer_could_do(dataflow, layer):
    """Never fewer than its half of the buffer allows, and not many more: for its column tiles, or a cut channel."""
    table = windows(layer)
    for kib in (1, 2, 4):
        best = fewest_fetches(inputs_in_order(dataflow, table, layer.out_channels, 8, 4), kib * 512)
        fetched = dataflow(8, 4, kib, kib, kib).cost(layer).dram.ifmap
        assert best <= fetched <= 3.5 * best


def test_small_buffers_fetch_again():
    layer = Layer(64, 64, 56, 56, kernel=3, padding=1)
    ideal = IdealArray().cost(layer)
    for dataflow in DATAFLOWS:
        large, tiny = dataflow().cost(layer), dataflow(ifmap_kib=4, filter_kib=4, ofmap_kib=4).cost(layer)
        assert large.cycles == tiny.cycles and large.sram == tiny.sram
        assert ideal.dram.total <= large.dram.total < tiny.dram.total
        assert ideal.energy < large.energy


@pytest.mark.parametrize("dataflow", [*DATAFLOWS, IdealArray])
def test_layers_add_up_and_groups_run_one_by_one(dataflow):
    array = dataflow(8, 8)
    first, second = Layer(8, 16, 14, 14, 3), Layer.gemm(1, 10, 64)
    total = array.cost([first, second])
    assert total == array.cost(first) + array.cost(second)
    assert total.macs == first.macs + second.macs
    assert array.cost([]) == Counts()
    depthwise = array.cost(Layer(8, 8, 14, 14, 3, groups=8))
    if dataflow is not IdealArray:
        assert depthwise.cycles == 8 * array.cost(Layer(1, 1, 14, 14, 3)).cycles
    assert 0 < depthwise.utilization <= 1


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_no_faster_than_the_ideal_array(dataflow):
    for rows in (1, 4, 32):
        for layer in (Layer(3, 16, 20, 20, 5, 2, 2), Layer.gemm(7, 3, 100)):
            assert dataflow(rows, rows).cost(layer).cycles >= IdealArray(rows, rows).cost(layer).cycles


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: WeightStationary(rows=0), "rows: expected an integer of at least 1, got 0"),
        (lambda: WeightStationary(columns=2.0), "columns"),
        (lambda: OutputStationary(ifmap_kib=-1), "ifmap_kib"),
        (lambda: OutputStationary(convention="paper"), "convention"),
        (lambda: Layer(0, 1, 1, 1), "in_channels"),
        (lambda: Layer(3, 4, 8, 8, kernel=(3, 0)), "kernel"),
        (lambda: Layer(3, 4, 2, 2, kernel=3), "kernel: .* does not fit"),
        (lambda: Layer(3, 4, 8, 8, groups=2), "groups"),
        (lambda: InputStationary().cost_gemm(4, True, 4), "out_channels"),
    ],
)
def test_wrong_input(fault, message):
    with pytest.raises(ValueError, match=message):
        fault()


def test_what_the_table_of_energies_does_not_hold():
    with pytest.raises(KeyError, match="bfloat16"):
        WeightStationary(format="bfloat16")
    with pytest.raises(KeyError, match="2048"):
        WeightStationary(ifmap_kib=2048)
    with pytest.raises(TypeError, match="layers"):
        WeightStationary().cost([(1, 2, 3)])


def test_wider_operands_cost_more_bytes_and_energy():
    layer = Layer(16, 16, 14, 14, 3)
    narrow, wide = (WeightStationary(format=f).cost(layer) for f in ("int8", "fp32"))
    assert wide.dram.filter == 4 * narrow.dram.filter and wide.cycles == narrow.cycles
    assert wide.energy > narrow.energy


@pytest.mark.parametrize("convention", ["corrected", "scale-sim"])
@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_one_processing_element_is_never_busier_than_busy(dataflow, convention):
    for shape in ((1, 1, 1), (4, 4, 4), (7, 1, 9)):
        assert 0 < dataflow(1, 1, convention=convention).cost_gemm(*shape).utilization <= 1


def test_bytes_from_off_chip_pass_through_a_buffer():
    counts = WeightStationary(filter_kib=8).cost_gemm(8, 8, 8)
    by_hand = 512 * (0.2e-12 + 0.1e-12) + 192 * 1.3e-9 / 8  # three operands of 64 bytes off chip
    by_hand += (2 * 64 + 64 + 64 * 4) * 100e-12 / 8 + 2 * 64 * 10e-12 / 8  # filled and read; sums of four bytes written
    assert counts.energy == pytest.approx(by_hand)
    assert counts.figures()["sram_access"] == counts.sram.total + counts.dram.total == 6 * 64 + 192


def test_a_dataflow_must_say_what_it_keeps():
    with pytest.raises(TypeError, match="abstract"):
        SystolicArray()
