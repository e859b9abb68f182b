"""How long does a volume with several organs take, beside the reference's way of working?

    python benchmarks/volume.py [--slices 100] [--ways reference openvino ...] [--rounds 1]

A CT of SLICES x 512 x 512 voxels with four made-up organs, each with a box on its middle slice that is carried to both
of its ends. Each way is a process of its own, one after the other in each round; the time is that from the image in
memory to the label map, without starting and loading, and the seconds of encoding and decoding are parts of it. Dice is
the least of the four organs', with the masks of the first way. Memory is the peak of the process beyond what it took
with the model loaded and the volume in memory.

`reference` works as the challenge's own script does, with the same network in PyTorch: each slice is encoded once for
every organ on it, and every box is a call of the decoder. `torch` is palpate on PyTorch. Weights must be here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from conditions import conditions

from palpate.models import catalogue

WAYS = {
    "reference": ("torch", "float32"),
    "torch": ("torch", "float32"),
    "onnxruntime": ("onnxruntime", "float32"),
    "openvino": ("openvino", "float32"),
    "openvino-bfloat16": ("openvino", "bfloat16"),
}


def main() -> None:
    """Measure, and print the table; as a child, do one way and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS], help="the first is the reference")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--child", choices=[*WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(segmented(options)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    labels: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Made here, so that it does not count to the memory of the others.
        volume, places = phantom(options.slices, options.side)
        np.save(folder / "volume.npy", volume)
        np.save(folder / "places.npy", [[(side.start, side.stop) for side in place] for place in places])
        for _ in range(options.rounds):
            for way in options.ways:
                own = [sys.executable, __file__, "--child", way, "--folder", name, "--model", options.model]
                done = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
                labels[way] = np.load(folder / "labels.npy")
                print(f"{way}: {found[way][-1]}", file=sys.stderr, flush=True)
    first = options.ways[0]
    weights = catalogue.card(options.model).content_sha256 or ""
    said = conditions("torch", "openvino", "onnxruntime", model=options.model, weights=weights)
    print(
        f"{said}; {options.slices} x {options.side} x {options.side}, four organs; medians of {options.rounds} rounds"
    )
    print("\n| way | seconds | encoding | decoding | times quicker | slices | boxes | least Dice | memory, GB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for way, several in found.items():
        middle = {key: statistics.median(one[key] for one in several) for key in several[0]}
        quicker = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(found[first], several, strict=True))
        seconds = " | ".join(f"{middle[key]:.1f}" for key in ("seconds", "encoding", "decoding"))
        print(
            f"| {way} | {seconds} | {quicker:.2f} | {middle['encoded']:.0f} | {middle['decoded']:.0f} "
            f"| {least_dice(labels[way], labels[first]):.4f} | {middle['memory']:.2f} |"
        )


def least_dice(found: np.ndarray, known: np.ndarray) -> float:
    """Of the four organs."""
    scores: list[float] = []
    for label in range(1, 5):
        one, other = found == label, known == label
        scores.append(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))
    return min(scores)


def phantom(slices: int, side: int) -> tuple[np.ndarray, list[tuple[slice, slice, slice]]]:
    """Hounsfield units with four bumpy organs, and where each of these lies."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:slices, :side, :side]
    z, y, x = (axis.astype(np.float32) for axis in (z / slices, y / side, x / side))
    body = ((x - 0.5) / 0.42) ** 2 + ((y - 0.5) / 0.34) ** 2 < 1
    volume = np.where(body, np.float32(-20), np.float32(-1000)) + np.zeros((slices, 1, 1), np.float32)
    volume += rng.normal(0, 12, volume.shape).astype(np.float32)
    places: list[tuple[slice, slice, slice]] = []
    organs = ((0.5, 0.45, 0.3, 0.33, 0.16, 0.12, 120), (0.45, 0.45, 0.72, 0.3, 0.1, 0.09, 100))
    organs += ((0.55, 0.65, 0.36, 0.3, 0.07, 0.06, 180), (0.52, 0.65, 0.64, 0.32, 0.07, 0.06, 180))
    for cz, cy, cx, rz, ry, rx, grey in organs:
        bumps = 0.06 * np.sin(9 * np.arctan2(y - cy, x - cx) + 20 * z)
        inside = ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1 + bumps
        volume[inside] += grey
        spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        places.append(tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans))  # pyright: ignore[reportArgumentType]
    return volume.astype(np.int16), places


def segmented(options: argparse.Namespace) -> dict[str, float]:
    """One way's seconds, encodings, decodings and memory; its label map goes into the folder."""
    import palpate

    runtime, precision = WAYS[options.child]
    if options.child != "reference":
        from palpate.inference.processes import be_quick

        be_quick()  # as the command line does
    volume = np.load(options.folder / "volume.npy")
    places = [tuple(slice(*map(int, side)) for side in place) for place in np.load(options.folder / "places.npy")]
    session = palpate.load(options.model, device="cpu", runtime=runtime, precision=precision)
    ready = session.runtime
    counted = {"encoded": 0.0, "decoded": 0.0, "encoding": 0.0, "decoding": 0.0}
    encode, decode = ready.encode, ready.decode

    def counting_encode(canvas: np.ndarray) -> object:
        counted["encoded"] += len(canvas)
        begun = time.perf_counter()
        try:
            return encode(canvas)
        finally:
            counted["encoding"] += time.perf_counter() - begun

    def counting_decode(embedding: object, prompts: object, **more: bool) -> object:
        counted["decoded"] += len(prompts)  # pyright: ignore[reportArgumentType]
        begun = time.perf_counter()
        try:
            return decode(embedding, prompts, **more)  # pyright: ignore[reportArgumentType]
        finally:
            counted["decoding"] += time.perf_counter() - begun

    object.__setattr__(ready, "encode", counting_encode)
    object.__setattr__(ready, "decode", counting_decode)
    targets: list[palpate.Target] = []
    for label, (zs, ys, xs) in enumerate(places, start=1):
        middle = (zs.start + zs.stop) // 2
        # The organ's widest slice is its middle one; a real box is not quite tight either.
        box = palpate.Box(xs.start - 2, ys.start - 2, xs.stop + 1, ys.stop + 1, z=middle)
        targets.append(palpate.Target((box,), label=label, z_range=(zs.start, zs.stop - 1)))
    image = palpate.Image(volume, modality="CT")
    before = held_from_now_on()
    start = time.perf_counter()
    labels = np.zeros(volume.shape, dtype=np.uint16)
    if options.child == "reference":
        for target in targets:
            alone = palpate.Session(ready)  # it knows nothing of the slices that others have encoded
            alone.set_image(image, axis="z")
            mask = alone.predict_all([target]).labels
            labels[mask > 0] = target.label
    else:
        session.set_image(image, axis="z")
        labels = session.predict_all(targets).labels
    seconds = time.perf_counter() - start
    peak = most_held()
    np.save(options.folder / "labels.npy", labels)
    return {"seconds": seconds, "memory": peak - before, **counted}


def held_from_now_on() -> float:
    """What the process holds, in GB; the peak begins anew where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _of_status("VmRSS")
    return most_held()


def most_held() -> float:
    """The most that the process held, in GB."""
    with contextlib.suppress(OSError):
        return _of_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def _of_status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e9


if __name__ == "__main__":
    main()
