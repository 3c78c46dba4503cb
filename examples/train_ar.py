"""Trains a small next-scale transformer on a token dataset, and says how well it predicts bits of held-out clips.

    python examples/train_ar.py out/demo/tokens --json ar.json
    python examples/train_ar.py out/demo/tokens --sample sample.npz --checkpoint demo
    torchrun --nproc-per-node 8 examples/train_ar.py s3://bucket/tokens --size large --device cuda --batch-size 64

Knows the loader and the model beside it. A start to change, not a framework.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ar_bits import BitCount, mean_bits
from ar_data import AUDIO_COLUMNS, LATENT_COLUMN, Corpus, Shares, open_corpus, shares_of_ones
from ar_model import SIZES, Audio, NextScaleModel, audio_bands
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.model import BitwiseVAE
from pipeline.contract.specs import FlipRule
from pipeline.errors import ConfigError, MotionTokensError
from pipeline.loader import (
    Batch,
    Dropping,
    Ranks,
    Shuffle,
    TokenFeatures,
    TokenStream,
    TrainingTensors,
    read_null_codes,
)
from pipeline.stages.codec import open_codec, require_same_codec

WARM_UP_STEPS, LAST_RATE = 40, 0.02
EVALUATION_BATCH = 32
LINE_STEPS = 50


@dataclass(frozen=True)
class Setup:
    """Where and how this process trains; built from the command line and torchrun's environment."""

    options: argparse.Namespace
    device: torch.device
    rank: int
    num_ranks: int

    @property
    def precision(self) -> str:
        """Of matrix products: bfloat16 on a GPU."""
        return "bfloat16" if self.device.type == "cuda" else "float32"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that the model computes in."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = parsed(arguments)
    console = Console(stderr=True)
    try:
        setup = set_up(options)
        train(setup, console)
    except MotionTokensError as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False, soft_wrap=True)
        return error.exit_code
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("dataset", metavar="DATASET", help="folder that tokenize wrote, on disk or object storage")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=8, help="windows a step and process")
    parser.add_argument("--rate", type=float, help="learning rate; default 2e-3 for small, 3e-4 for large")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--workers", type=int, default=0, help="processes that read batches")
    parser.add_argument("--drop-prev", type=float, default=0.1, help="chance that prev is the null code")
    parser.add_argument("--flips", type=float, metavar="RATIO", help="self-correction from stored latents, such as 0.3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="results")
    parser.add_argument("--sample", type=Path, metavar="FILE", help="npz of generated motion behind a held-out prev")
    parser.add_argument("--guidance", type=float, default=1.0, help="above 1 the sample follows its prev more")
    parser.add_argument("--checkpoint", default="demo", help="codec that decodes the sample")
    return parser.parse_args(arguments)


def set_up(options: argparse.Namespace) -> Setup:
    """Join the other processes of torchrun, where it started this one, and choose the device."""
    if options.steps < 1 or options.batch_size < 1:
        raise ConfigError(f"steps {options.steps} and batch size {options.batch_size} must be 1 or more")
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; name cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device(name, local) if name == "cuda" else torch.device(name)
    if name == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Setup(options, device, 0, 1)
    dist.init_process_group("nccl" if name == "cuda" else "gloo")
    return Setup(options, device, dist.get_rank(), dist.get_world_size())


def train(setup: Setup, console: Console) -> None:
    """Train, evaluate, and write what was asked for."""
    options = setup.options
    corpus = open_corpus(options.dataset, wants_latent=options.flips is not None)
    decoder = None if options.sample is None else decoder_of(corpus, options.checkpoint).to(setup.device)
    features = TokenFeatures.of_codec(corpus.train.codec)
    shares = shares_of_ones(corpus, features)
    torch.manual_seed(options.seed)
    model = NextScaleModel(features, SIZES[options.size], torch.logit(shares.by_token), corpus.has_audio)
    model.to(setup.device)
    torch.manual_seed(options.seed + 1 + setup.rank)  # ranks leave out other units
    begin = time.monotonic(), time.process_time()
    loss = fit(setup, corpus, model, console)
    seconds, cpu_seconds = time.monotonic() - begin[0], time.process_time() - begin[1]
    if setup.rank:
        return
    results = {
        **evaluate(setup, corpus, model, shares),
        "steps": options.steps,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "windows_per_s": round(options.steps * options.batch_size * setup.num_ranks / seconds, 1),
        "last_training_bits_per_bit": round(loss, 4),
        "device": torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": setup.precision,
        "processes": setup.num_ranks,
        "batch_size": options.batch_size,
        "size": options.size,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "has_audio": corpus.has_audio,
        "flips": options.flips,
        "seed": options.seed,
        "torch": torch.__version__,
    }
    tell(results, console)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"results in {options.json}", highlight=False)
    if decoder is not None:
        sample(setup, corpus, model, decoder, console)


def fit(setup: Setup, corpus: Corpus, model: NextScaleModel, console: Console) -> float:
    """Train for the wanted steps; return the mean loss of the last ones, bits a bit."""
    options = setup.options
    optimizer = optimizer_of(model, options.rate or (2e-3 if options.size == "small" else 3e-4))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, options.steps))
    wrapped: nn.Module = model
    if setup.num_ranks > 1:
        wrapped = DistributedDataParallel(model, [setup.device] if setup.device.type == "cuda" else None)
    dropping = Dropping(prev=options.drop_prev, style=0.0, seed=options.seed)
    null = read_null_codes(corpus.train.folder, corpus.train.manifest)
    losses: list[Tensor] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_silent = setup.rank > 0
    with Progress(*columns, console=console, transient=True, disable=is_silent or not console.is_terminal) as progress:
        bar = progress.add_task("training", total=options.steps)
        for step, (epoch, batch) in enumerate(training_batches(setup, corpus), 1):
            tensors, audio = prepared(setup, model.features, dropping.apply(batch, null, epoch), epoch)
            is_mine = ~corpus.is_held_out(batch["clip_id"]).to(setup.device)
            with setup.autocast():
                logits = wrapped(tensors.prev, tensors.inputs, audio)
            loss = mean_bits(logits, tensors.targets, tensors.this_valid & is_mine[:, None])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses = [*losses[-LINE_STEPS + 1 :], loss.detach()]
            progress.advance(bar)
            if step % LINE_STEPS == 0 and not is_silent:
                mean = float(torch.stack(losses).mean())
                progress.update(bar, description=f"{mean:.4f} bits a bit")
                if not console.is_terminal:
                    console.print(f"{step}/{options.steps} {mean:.4f} bits a bit", highlight=False)
    return float(torch.stack(losses).mean())


def training_batches(setup: Setup, corpus: Corpus) -> Iterator[tuple[int, Batch]]:
    """Yield epoch and batch of every step, in an order that the seed alone decides."""
    options = setup.options
    ranks = Ranks(setup.rank, setup.num_ranks, even="pad")
    stream = TokenStream(corpus.train, options.batch_size, shuffle=Shuffle(options.seed), ranks=ranks)
    loader = torch.utils.data.DataLoader(
        stream, batch_size=None, num_workers=options.workers, pin_memory=setup.device.type == "cuda"
    )
    step = epoch = 0
    while step < options.steps:
        stream.set_epoch(epoch)
        for batch in loader:
            yield epoch, batch
            step += 1
            if step == options.steps:
                return
        epoch += 1


def prepared(setup: Setup, features: TokenFeatures, batch: Batch, epoch: int) -> tuple[TrainingTensors, Audio]:
    """Move a batch to the device; where flips are wanted, another pair of every window each epoch."""
    pair = None
    if setup.options.flips is not None:
        rule = FlipRule(pairs=1, ratio=setup.options.flips, seed=setup.options.seed)
        latent = batch[LATENT_COLUMN].to(setup.device)
        pair = features.flip_pairs(latent, batch["clip_id"], batch["start_frame"], rule, epoch)
    return features.training_tensors(batch, setup.device, pair), sound_of(setup, features, batch)


def sound_of(setup: Setup, features: TokenFeatures, batch: Batch) -> Audio:
    """Return the audio features of both halves, None where the batch has no sound."""
    if "this_audio" not in batch:
        return None
    before, now = (batch[name].to(setup.device) for name in AUDIO_COLUMNS)
    return audio_bands(before, features.window_frames), audio_bands(now, features.window_frames)


@torch.inference_mode()
def evaluate(setup: Setup, corpus: Corpus, model: NextScaleModel, shares: Shares) -> dict[str, Any]:
    """Return bits a bit on held-out clips: of the model, and of bits that stand alone."""
    features = model.features
    model.eval()
    alone = [torch.logit(share).to(setup.device) for share in (shares.by_scale, shares.by_token)]
    ours, by_scale, by_token = (BitCount(features) for _ in range(3))
    num_windows = 0
    for batch in corpus.held_out(EVALUATION_BATCH):
        tensors = features.training_tensors(batch, setup.device)
        with setup.autocast():
            logits = model(tensors.prev, tensors.inputs, sound_of(setup, features, batch))
        for count, guess in zip((ours, by_scale, by_token), (logits, *alone), strict=True):
            count.add(guess.expand_as(logits), tensors)
        num_windows += len(logits)
    scales = [
        {
            "tokens": size,
            "bits_per_bit": round(ours.per_bit(scale), 4),
            "independent_entropy": round(by_scale.per_bit(scale), 4),
            "token_entropy": round(by_token.per_bit(scale), 4),
        }
        for scale, size in enumerate(features.patch_nums)
    ]
    return {
        "bits_per_bit": round(ours.per_bit(), 4),
        "independent_entropy": round(by_scale.per_bit(), 4),
        "ratio": round(ours.per_bit() / by_scale.per_bit(), 4),
        "token_entropy": round(by_token.per_bit(), 4),
        "scales": scales,
        "train_windows": corpus.num_train,
        "held_out_windows": num_windows,
    }


def decoder_of(corpus: Corpus, checkpoint: str) -> BitwiseVAE:
    """Return the codec that the tokens are of.

    Raises:
        OutputMismatchError: the checkpoint is another codec.
    """
    codec = open_codec(checkpoint)
    require_same_codec(codec, corpus.train.contract, str(corpus.train.folder))
    return read_checkpoint(codec.data, checkpoint).eval()


def sample(setup: Setup, corpus: Corpus, model: NextScaleModel, decoder: BitwiseVAE, console: Console) -> None:
    """Generate `this` behind a held-out `prev`, decode both, and write motion."""
    options, features = setup.options, model.features
    batch = next(corpus.held_out(EVALUATION_BATCH))
    whole = int(batch["prev_valid_frames"].argmax())
    one = {name: value[whole : whole + 1] for name, value in batch.items()}
    prev_bits = features.unpack(one["prev_bits"].to(setup.device))
    null = read_null_codes(corpus.train.folder, corpus.train.manifest).prev.to(setup.device)
    guide = None if options.guidance == 1 else (features.code_feature(features.unpack(null[None])), options.guidance)
    generator = torch.Generator().manual_seed(options.seed)
    with setup.autocast():
        drawn = model.sample(features.code_feature(prev_bits), generator, sound_of(setup, features, one), guide)
    with torch.inference_mode():
        prev, this = decoder.vqidx_to_motion(prev_bits, drawn)
    motion = torch.cat([prev, this], dim=1)[0].float().cpu().numpy()
    fps = np.float32(corpus.train.codec.fps)
    np.savez(options.sample, motion=motion, fps=fps, start_frame=np.int64(one["start_frame"][0]))
    console.print(
        f"{one['clip_id'][0]}: {features.window_frames} frames generated behind frame {int(one['start_frame'][0])}, the"
        f" {features.window_frames} before them stand first, in {options.sample}",
        highlight=False,
        soft_wrap=True,
    )


def tell(results: dict[str, Any], console: Console) -> None:
    """Print the results as a person reads them."""
    console.print(
        f"{results['bits_per_bit']:.4f} bits a bit on {results['held_out_windows']} held-out windows, independent bits"
        f" take {results['independent_entropy']:.4f}: ratio {results['ratio']:.3f} after {results['steps']} steps in"
        f" {results['seconds']:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    for scale in results["scales"]:
        console.print(
            f"  {scale['tokens']:>4} tokens  {scale['bits_per_bit']:.4f} of {scale['independent_entropy']:.4f}",
            highlight=False,
        )


def optimizer_of(model: NextScaleModel, rate: float) -> torch.optim.Optimizer:
    """Return AdamW that shrinks matrices alone."""
    tables = {id(model.places), id(model.log_odds), id(model.start)}
    decayed = [weights for weights in model.parameters() if weights.ndim > 1 and id(weights) not in tables]
    rest = [weights for weights in model.parameters() if weights.ndim < 2 or id(weights) in tables]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=model.start.is_cuda)


def rate_share(step: int, num_steps: int) -> float:
    """Return the share of the learning rate at a step: a warm-up, then half a cosine."""
    share = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * step / num_steps)) / 2
    return share * min(1.0, (step + 1) / WARM_UP_STEPS)


if __name__ == "__main__":
    sys.exit(main())
