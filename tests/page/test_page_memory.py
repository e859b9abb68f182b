"""A long day in one window: cases that were opened before take no memory any more."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from browsing import Screen, answering
from desks import Office, brick
from palpate.server.app import PAGE

pytestmark = pytest.mark.slow

TIMES = 30

COUNTING = """
window.graphics = {};
for (const kind of ["Texture", "Buffer", "Framebuffer", "Program", "VertexArray"]) {
  const prototype = WebGL2RenderingContext.prototype;
  const [make, drop] = [prototype[`create${kind}`], prototype[`delete${kind}`]];
  const live = new WeakSet();
  window.graphics[kind] = 0;
  prototype[`create${kind}`] = function () {
    const made = make.call(this);
    live.add(made);
    window.graphics[kind] += 1;
    return made;
  };
  prototype[`delete${kind}`] = function (one) {
    if (one && live.delete(one)) window.graphics[kind] -= 1; // some are deleted twice
    return drop.call(this, one);
  };
}
"""


@pytest.fixture
def office(tmp_path: Path) -> Generator[Office]:
    if not (PAGE / "vendor" / "niivue.js").is_file():
        pytest.skip("NiiVue is not packed; `pip install -e .` packs it where there is npm")
    for name in ("first", "second"):
        brick(tmp_path / f"{name}.nii.gz")
    office = Office(tmp_path)
    yield office
    office.closed()


@pytest.fixture
def address(office: Office) -> Generator[str]:
    with answering(office) as where:
        yield where


def test_cases_that_were_open_before_take_no_memory(window: Callable[..., Screen]) -> None:
    screen = window(700, 450, script=COUNTING)
    tools = screen.page.context.new_cdp_session(screen.page)
    tools.send("Performance.enable")

    def held() -> dict[str, float]:
        """Bytes of objects and arrays, and how many elements, listeners and things of the graphics there are."""
        for _ in range(2):
            tools.send("HeapProfiler.collectGarbage")
        usage = tools.send("Runtime.getHeapUsage")
        metrics = {one["name"]: one["value"] for one in tools.send("Performance.getMetrics")["metrics"]}
        bytes_ = {"heap": usage["usedSize"], "arrays": usage["backingStorageSize"]}
        counts = {name: metrics[name] for name in ("Nodes", "JSEventListeners")}
        return {**bytes_, **counts, **screen.page.evaluate("window.graphics")}

    def opens(times: int) -> None:
        for number in range(times):
            screen.open(("first.nii.gz", "second.nii.gz")[number % 2])
            assert screen.page.evaluate("palpate.images()") == 1

    opens(6)
    before = held()
    opens(TIMES - 6)
    after = held()
    for kind in ("Texture", "Buffer", "Framebuffer", "Program", "VertexArray"):
        assert after[kind] == before[kind], kind
    # An image has 77 000 voxels of two bytes; its map has as many bytes, and is held twice.
    assert after["arrays"] - before["arrays"] < 2 * 77_000
    assert after["heap"] - before["heap"] < 500_000
    assert after["Nodes"] - before["Nodes"] < 200
    assert after["JSEventListeners"] - before["JSEventListeners"] < 100
