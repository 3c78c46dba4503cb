"""The trainer: data it refuses, windows it draws, the loss formula, the curve after a resume, and what it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitwise_vae.config import BitwiseVAEConfig, MotionGroup
from bitwise_vae.model import TrainingOutput
from bitwise_vae.training.clips import MotionClips, MotionStatistics, TrainingDataError
from bitwise_vae.training.evaluation import evaluate_clips
from bitwise_vae.training.loop import Trainer, TrainingDivergedError, TrainingEvents, train
from bitwise_vae.training.losses import LossWeights, training_loss
from bitwise_vae.training.state import TrainingStateError
from bitwise_vae.training.task import Peers, TrainingSettings, TrainingTask
from bitwise_vae.training.window_bank import WindowBank

CPU = torch.device("cpu")
DIMS = 12
TINY = BitwiseVAEConfig(motion_dim=DIMS, code_dim=16, patch_nums=(1, 2, 5, 10, 20), hidden_dim=16, depth=1, num_heads=2)
QUICK = TrainingSettings(
    steps=8, batch_size=4, learning_rate=1e-3, warmup_steps=2, log_every=2, validate_every=4, validation_windows=8
)


def smooth_motion(num_frames, seed, dims=DIMS):
    rng = np.random.default_rng(seed)
    time = np.arange(num_frames)[:, None, None] / 25
    hz, phase, size = rng.uniform(0.2, 1.0, (1, 4, 5)), rng.uniform(0, 6.28, (1, 4, 5)), rng.normal(size=(1, 4, 5))
    sources = (size * np.sin(2 * np.pi * hz * time + phase)).sum(axis=-1)
    return (sources @ np.random.default_rng(1).normal(size=(4, dims))).astype(np.float32)


def smooth_clips(num_clips, num_frames=90):
    return MotionClips.of([(f"clip-{index}", smooth_motion(num_frames, index)) for index in range(num_clips)])


def a_task(settings=QUICK, config=TINY, num_clips=6):
    training, held_out = smooth_clips(num_clips).divide(0.2)
    return TrainingTask(config, training.statistics(), training, held_out, settings)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def curve_of(trainer):
    points = []
    train(trainer, TrainingEvents(on_point=lambda point: points.append(point.to_json())))
    return points


def test_motion_clips_refuses_what_cannot_be_learned():
    with pytest.raises(TrainingDataError, match="no clip of motion"):
        MotionClips.of([])
    broken = smooth_motion(50, 0)
    broken[17, 3] = np.nan
    with pytest.raises(TrainingDataError, match=r"clip b .* frame 17"):
        MotionClips.of([("a", smooth_motion(50, 1)), ("b", broken)])
    with pytest.raises(TrainingDataError, match=r"\[5, 12\] columns"):
        MotionClips.of([("a", smooth_motion(50, 1)), ("b", smooth_motion(50, 2, dims=5))])
    with pytest.raises(TrainingDataError, match="window has 100 frames, the longest of 2 clips has 90"):
        smooth_clips(2).at_least(100)
    with pytest.raises(TrainingDataError, match="all 12 columns are constant over 30 frames"):
        MotionClips.of([("a", np.ones((30, DIMS), np.float32))]).statistics()
    with pytest.raises(TrainingDataError, match="only clip-0"):
        smooth_clips(1).divide(0.2)


def test_motion_clips_divide_holds_out_by_id_alone():
    few, many = smooth_clips(10), smooth_clips(40)
    held_few, held_many = set(few.divide(0.3)[1].clip_ids), set(many.divide(0.3)[1].clip_ids)
    assert held_few == held_many & set(few.clip_ids)
    training, held_out = many.divide(0.3)
    assert set(training.clip_ids) | held_many == set(many.clip_ids)
    np.testing.assert_array_equal(held_out.clip(0), smooth_motion(90, int(held_out.clip_ids[0].split("-")[1])))
    for share in (1e-9, 1 - 1e-9):
        parts = smooth_clips(3).divide(share)
        assert min(part.num_clips for part in parts) == 1


def test_motion_clips_statistics_in_float64_with_constant_columns():
    motion = smooth_motion(400, 3) + 1000
    motion[:, 5] = 7
    found = MotionClips.of([("a", motion[:100]), ("b", motion[100:])]).statistics()
    wanted = motion.astype(np.float64)
    np.testing.assert_allclose(found.mean, wanted.mean(axis=0), rtol=1e-6)
    keep = np.arange(DIMS) != 5
    np.testing.assert_allclose(found.std[keep], wanted.std(axis=0)[keep], rtol=1e-5)
    assert found.std[5] == 1


def test_window_bank_cuts_windows_with_zeros_before_a_clip():
    clips = MotionClips.of([("a", smooth_motion(30, 0)), ("short", smooth_motion(5, 1)), ("b", smooth_motion(50, 2))])
    bank = WindowBank(clips, 20, CPU)
    assert bank.clips.clip_ids == ("a", "b")
    assert bank.num_offsets == 11 + 31
    batch = bank.cut(np.array([0, 1]), np.array([3, 30]))
    assert batch.is_real[0].tolist() == [False] * 17 + [True] * 23
    assert batch.is_real[1].all()
    assert not batch.motion[0, :17].any()
    np.testing.assert_array_equal(batch.motion[0, 17:], clips.clip(0)[:23])
    np.testing.assert_array_equal(batch.motion[1], clips.clip(2)[10:50])


def test_window_bank_draws_every_offset_and_repeats_itself():
    bank = WindowBank(MotionClips.of([("a", smooth_motion(23, 0)), ("b", smooth_motion(20, 1))]), 20, CPU)
    drawn = torch.cat([bank.random_batch(16, seed=1, step=step).motion[:, 20] for step in range(20)])
    firsts = torch.cat([torch.from_numpy(bank.clips.clip(0)[:4]), torch.from_numpy(bank.clips.clip(1)[:1])])
    seen = (drawn[:, None] == firsts).all(dim=-1)
    assert seen.any(dim=1).all()
    assert (seen.sum(dim=0) > 30).all()
    again = bank.random_batch(16, seed=1, step=3)
    assert torch.equal(again.motion, bank.random_batch(16, seed=1, step=3).motion)
    assert not torch.equal(again.motion, bank.random_batch(16, seed=2, step=3).motion)
    halves = [bank.random_batch(16, 1, 3, slice(rank, None, 2)).motion for rank in (0, 1)]
    assert torch.equal(torch.stack(halves, dim=1).flatten(0, 1), again.motion)


def test_window_bank_grid_covers_every_frame_once():
    bank = WindowBank(smooth_clips(3, num_frames=47), 20, CPU)
    covered = np.zeros((3, 47), int)
    for index, start, fresh in zip(*bank.grid(), strict=True):
        covered[index, start + fresh : start + 20] += 1
    assert (covered == 1).all()


def test_training_loss_is_the_documented_formula():
    groups = (MotionGroup("face", 0, 2, ""), MotionGroup("jaw", 2, 3, "rad"))
    config = replace(TINY, motion_dim=3, motion_groups=groups)
    rng = np.random.default_rng(0)
    motion, decoded = (torch.from_numpy(rng.normal(size=(2, 40, 3))).float() for _ in range(2))
    is_real = torch.arange(40) >= torch.tensor([[20], [7]])
    std = torch.tensor([1.0, 2.0, 0.5])
    losses = torch.tensor([0.3, 0.5])
    bits = torch.zeros(2, 1, 1)
    gap, weights = is_real * 4.0 + 1, LossWeights(pose=3, velocity=5, acceleration=7, quantizer=2, latent=0.1)
    terms = training_loss(
        TrainingOutput(decoded, bits, bits, losses, losses + 1, gap), motion, is_real, config, std, weights
    )
    apart = ((decoded - motion) / std).double().numpy()
    pieces = [apart[0, 20:], apart[1, 7:]]
    frames = np.concatenate(pieces)
    steps = np.concatenate([np.diff(piece, axis=0) for piece in pieces])
    bends = np.concatenate([np.diff(piece, n=2, axis=0) for piece in pieces])
    face, jaw = np.abs(frames[:, :2]).mean(), np.abs(frames[:, 2:]).mean()
    velocity, acceleration = 5 / 3 * np.square(steps[:, 2]).mean(), 7 / 3 * np.square(bends[:, 2]).mean()
    assert terms.l1.item() == pytest.approx(np.abs(frames).mean(), rel=1e-5)
    assert terms.velocity.item() == pytest.approx(velocity, rel=1e-5)
    assert terms.acceleration.item() == pytest.approx(acceleration, rel=1e-5)
    assert terms.quantizer.item() == pytest.approx(2 * 0.9, rel=1e-5)
    wanted = 2 / 3 * face + 3 / 3 * jaw + velocity + acceleration + 1.8 + 0.5
    assert terms.total.item() == pytest.approx(wanted, rel=1e-5)


def test_trainer_refuses_data_that_does_not_fit():
    task = a_task()
    with pytest.raises(TrainingDataError, match="12 columns, the codec 9"):
        Trainer(replace(task, config=replace(TINY, motion_dim=9, motion_groups=())), CPU)
    with pytest.raises(TrainingDataError, match=r"statistics have shape \(5,\), the motion 12"):
        Trainer(replace(task, statistics=MotionStatistics(np.zeros(5, np.float32), np.ones(5, np.float32))), CPU)
    with pytest.raises(TrainingDataError, match="not above 0"):
        flat = MotionStatistics(task.statistics.mean, np.zeros(DIMS, np.float32))
        Trainer(replace(task, statistics=flat), CPU)
    with pytest.raises(ValueError, match="found 4 and 3"):
        Trainer(task, CPU, Peers(0, 3))


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"learning_rate": 0.0}, {"precision": "float16"}, {"log_every": 3}, {"ema_decay": 1.0}]
)
def test_training_settings_refuse_impossible_values(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        replace(QUICK, **values)


def test_rate_at_warms_up_and_decays():
    settings = replace(QUICK, steps=100, warmup_steps=10, learning_rate=1.0, final_rate=0.1)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert settings.rate_at(100) == pytest.approx(0.1)


def test_train_resumes_to_the_same_curve_and_weights():
    task = a_task()
    whole = Trainer(task, CPU)
    wanted = curve_of(whole)
    first = Trainer(task, CPU)
    for _ in range(4):
        first.step()
    first.validate()
    state = first.state()
    second = Trainer(task, CPU)
    second.restore(state, "last.pt")
    assert curve_of(second) == wanted[2:]
    for ours, theirs in zip(second.best.parameters(), whole.best.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_restore_names_what_differs():
    state = Trainer(a_task(), CPU).state()
    other = Trainer(a_task(replace(QUICK, learning_rate=2e-3)), CPU)
    with pytest.raises(TrainingStateError, match=r"last\.pt: .*settings\.learning_rate 0\.002 here, 0\.001 there"):
        other.restore(state, "last.pt")
    with pytest.raises(TrainingStateError, match="training data"):
        Trainer(a_task(num_clips=7), CPU).restore(state, "last.pt")
    with pytest.raises(TrainingStateError, match="cannot be read"):
        other.restore(state[:100], "last.pt")


def test_train_in_two_workers_sums_their_gradients():
    """Two trainers in turn stand for two processes: gradients of one are added to the other's."""
    task = a_task(replace(QUICK, max_gradient=1e9))
    handed: list[list[torch.Tensor]] = []

    def keep(tensors):
        handed.append([tensor.clone() for tensor in tensors])

    def add(tensors):
        for tensor, other in zip(tensors, handed[0], strict=True):
            tensor.add_(other)

    Trainer(task, CPU, Peers(1, 2, keep)).step()
    both = Trainer(task, CPU, Peers(0, 2, add))
    both.step()
    gradients = [parameter.grad for parameter in both.model.parameters()]
    alone = Trainer(task, CPU)
    alone.step()
    for ours, parameter in zip(gradients, alone.model.parameters(), strict=True):
        assert (ours - parameter.grad).abs().max() < 0.2 * parameter.grad.abs().max() + 1e-6


def test_train_says_when_it_diverges():
    trainer = Trainer(a_task(), CPU)
    trainer.model.decoder.out_mapping.bias.data.fill_(float("inf"))
    with pytest.raises(TrainingDivergedError, match=r"step 2 is .*smaller learning rate than 0\.001"):
        train(trainer, TrainingEvents())


def test_extra_losses_reach_the_weights():
    seen = []

    def pull(decoded, motion, is_real):
        seen.append((decoded.shape, motion.shape, is_real.shape))
        return decoded.square().mean()

    plain, pulled = Trainer(a_task(), CPU), Trainer(a_task(), CPU, extra_losses=[pull])
    assert pulled.step().losses[0] > plain.step().losses[0]
    assert seen == [((4, 40, DIMS), (4, 40, DIMS), (4, 40))]


def test_evaluate_in_bfloat16_training_keeps_the_quantizer_in_float32():
    trainer = Trainer(a_task(replace(QUICK, precision="bfloat16")), CPU)
    seen = []
    trainer.model.quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    trainer.step()
    assert seen == [torch.float32, torch.float32]


@pytest.mark.slow
def test_train_lowers_held_out_error_threefold_in_300_steps():
    settings = TrainingSettings(
        steps=300, batch_size=32, learning_rate=4e-3, warmup_steps=20, log_every=50, validate_every=100, ema_decay=0.99
    )
    task = a_task(settings, replace(TINY, hidden_dim=64, depth=2, num_heads=4), num_clips=60)
    trainer = Trainer(task, CPU)
    before = evaluate_clips(trainer.average, task.held_out, CPU).error.fraction_of_mean
    train(trainer, TrainingEvents())
    codec, found = trainer.best_codec()
    assert found.error.fraction_of_mean < before / 3
    assert not [place for place in found.codes.dead_bits if place[0] >= 3]
    assert found.codes.mean_entropy[-1] > 0.9
    assert found.record(codec).patch_nums == TINY.patch_nums
