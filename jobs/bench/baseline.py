"""The baseline of the bench: the script that a researcher would write, without anything of the pipeline.

Run as `python -m jobs.bench.baseline FILES... --checkpoint FILE --output FOLDER`. Prints what it measured as
one line of JSON; the clock starts after the imports. It saves one npy a clip: (windows, 2, tokens, bits) int32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from bitwise_vae import load_checkpoint

BATCH_SIZE = 32
GPU_LOADER_WORKERS = 4

Motion = npt.NDArray[np.float32]


class WindowDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """All windows of all clips, one every T frames and one at each clip's end; holds the motion in memory."""

    def __init__(self, paths: Sequence[Path], window_frames: int, motion_dim: int) -> None:
        self.window_frames = window_frames
        self.clips: dict[str, Motion] = {}
        for path in paths:
            table = pq.read_table(path, columns=["clip_id", "motion"])
            for clip_id, motion in zip(table["clip_id"].to_pylist(), table["motion"], strict=True):
                self.clips[clip_id] = motion.values.flatten().to_numpy().reshape(-1, motion_dim)
        self.windows: list[tuple[str, int]] = []
        for clip_id, motion in self.clips.items():
            last = len(motion) - window_frames
            starts = [*range(0, last, window_frames), last]
            self.windows.extend((clip_id, start) for start in starts)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return prev and this, (T, dims) each; zeros stand before the clip's start."""
        clip_id, start = self.windows[index]
        motion, frames = self.clips[clip_id], self.window_frames
        prev = np.zeros((frames, motion.shape[1]), np.float32)
        known = motion[max(0, start - frames) : start]
        prev[frames - len(known) :] = known
        return torch.from_numpy(prev), torch.from_numpy(motion[start : start + frames].copy())


def tokenize_files(paths: Sequence[Path], checkpoint: Path, output: Path) -> int:
    """Tokenize every window of the files, save the bits of every clip, and return how many windows there were."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_checkpoint(checkpoint).to(device).eval()
    dataset = WindowDataset(paths, model.window_frames, model.motion_dim)
    workers = GPU_LOADER_WORKERS if device.type == "cuda" else 0  # on a CPU they would take cores from the model
    loader = DataLoader(dataset, BATCH_SIZE, num_workers=workers, pin_memory=device.type == "cuda")
    bits: dict[str, list[npt.NDArray[np.int32]]] = {clip_id: [] for clip_id in dataset.clips}
    done = 0
    with torch.inference_mode():
        for prev, this in loader:
            prev_bits, this_bits = model.quant_to_vqidx(prev.to(device), this.to(device))
            if this_bits is None:
                raise ValueError("the model gave no bits of `this`")
            both = torch.stack([prev_bits, this_bits], dim=1).cpu().numpy()
            for row, (clip_id, _) in zip(both, dataset.windows[done : done + len(both)], strict=True):
                bits[clip_id].append(row)
            done += len(both)
    for clip_id, rows in bits.items():
        np.save(output / f"{clip_id}.npy", np.stack(rows))
    return done


def main() -> None:
    """Parse the arguments, tokenize, and print seconds, windows and threads."""
    parser = argparse.ArgumentParser(description="Tokenize Parquet motion with a DataLoader and the plain model.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--checkpoint", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    windows = tokenize_files(arguments.files, arguments.checkpoint, arguments.output)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "windows": windows, "torch_threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
