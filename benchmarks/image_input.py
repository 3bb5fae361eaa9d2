"""What a host does for an image that is resized there, and what for one that the device resizes.

    python -m benchmarks.image_input --images DIR --cores 0

`host` decodes and resizes, as without IMAGE_CANVAS; `canvas` decodes alone, as with it; `device` is
the resizing of a batch on the device. `transformers` is CLIP's processor, which must give the same
pixels (1 / 255). Times are of the processor, not of the clock, for one thread, but for `device`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks import timing
from dsi_jax.inputs import image_files, pixels


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for the host and one for the device."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    files = sorted(path for path in Path(options.images).iterdir() if path.suffix == ".jpg")
    encoded = [path.read_bytes() for path in files[: options.batch]]
    if not encoded:
        raise SystemExit(f"{options.images} has no .jpg files")
    size, canvas = options.size, options.canvas
    resize = jax.jit(lambda sent: pixels.squares(sent, size))
    sent = jax.device_put(_on_canvases(encoded, size, canvas))
    squares = np.stack([image_files.read(one, size) for one in encoded])
    calls = {
        "host": lambda: [image_files.read(one, size) for one in encoded],
        "canvas": lambda: _on_canvases(encoded, size, canvas),
    }
    if not options.alone:
        calls["transformers"] = lambda: _processed(encoded, size)
        check("transformers", _processed(encoded, size), squares)
    reduced = check("device", np.asarray(resize(sent)), squares, whole=False)
    shared = {"images": len(encoded), "size": size, "canvas": canvas, "cores": cores}
    timings = timing.measure(
        calls, rounds=options.rounds, per_call=len(encoded), clock=time.process_time
    )
    timing.emit(
        kind="measurement",
        name="image_input",
        **shared,
        host_bytes=squares.nbytes // len(encoded),
        canvas_bytes=canvas * canvas * 3,
        differing=reduced,
        **timing.line(
            timings, lambda: {f"{name}_per_s": 1 / timings[name].p50 for name in timings}
        ),
    )
    call = {"": lambda: jax.block_until_ready(resize(sent))}
    timings = timing.measure(call, rounds=options.rounds, per_call=len(encoded))
    device = jax.devices()[0].device_kind
    timing.emit(
        kind="measurement",
        name="image_resize",
        device=device,
        **shared,
        **timing.line(timings, lambda: {"per_s": 1 / timings[""].p50}),
    )
    return 0


def check(name: str, found: np.ndarray, expected: np.ndarray, whole: bool = True) -> int:
    """How many images differ by more than 1.

    Raises:
      SystemExit: any does, and all were given whole; or most do.
    """
    differing = int((abs(found - expected.astype(int)).max(axis=(1, 2, 3)) > 1).sum())
    if differing > (0 if whole else len(found) // 2):
        raise SystemExit(f"{name}: {differing} of {len(found)} images differ by more than 1 / 255")
    return differing


def _on_canvases(encoded: list[bytes], size: int, canvas: int) -> dict[str, np.ndarray]:
    made = [image_files.on_canvas(image_files.decode(one), size, canvas) for one in encoded]
    return {"pixels": np.stack([one[0] for one in made]), "frames": np.stack([m[1] for m in made])}


def _processed(encoded: list[bytes], size: int) -> np.ndarray:
    from transformers import CLIPImageProcessor

    sides = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    processor = CLIPImageProcessor(**sides, do_normalize=False)
    found = processor([image_files.decode(one) for one in encoded], return_tensors="np")
    return np.round(found["pixel_values"] * 255).transpose(0, 2, 3, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", required=True, help="a directory of JPEG files")
    add("--batch", type=int, default=128, help="images, at most")
    add("--size", type=int, default=224, help="IMAGE_SIZE")
    add("--canvas", type=int, default=512, help="IMAGE_CANVAS")
    add("--rounds", type=int, default=5)
    add("--alone", action="store_true", help="without transformers")
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
