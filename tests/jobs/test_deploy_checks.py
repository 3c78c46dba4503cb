"""What a deployment is refused for: each finding names its field, what was found and what to write."""

from __future__ import annotations

import pytest

from jobs.deploy.checks import check_deployment
from pipeline.errors import ConfigError
from pipeline.job_config import load_config

RUN = """
run: {max_runtime: 7h}
deploy:
  image: motion-tokens:0.1.0
  inputs: [s3://motion/flame]
  output: s3://tokens/v1
  checkpoint: demo
  overlay: gpu
  secret: motion-s3
"""


def findings(*settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_deployment(load_config(RUN, settings))
    return str(caught.value)


def test_check_deployment_accepts_what_fits():
    checked = check_deployment(load_config(RUN))
    assert checked.longest_s == 7 * 3600 + 1.5 + 20 + 5


def test_check_deployment_needs_a_section():
    with pytest.raises(ConfigError, match=r"deploy: missing; say at least deploy.image"):
        check_deployment(load_config(None))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["run.local=true"], "run.local: true, but a cluster runs Ray"),
        (["deploy.image=motion-tokens:latest"], "deploy.image: motion-tokens:latest names no version"),
        (["deploy.image=registry.test:5000/motion-tokens"], "names no version"),
        (["deploy.inputs=[motion/]"], "deploy.inputs[0]: motion/ lies on one machine"),
        (["deploy.inputs=[talk=file:///motion]"], "lies on one machine"),
        (["deploy.output=/data/tokens"], "deploy.output: /data/tokens lies on one machine"),
        (["deploy.checkpoint=codec.pt"], "deploy.checkpoint: codec.pt lies on one machine"),
        (["export.clips=ids.txt"], "export.clips.include: ids.txt lies on one machine"),
        (["deploy.secret=null"], "deploy.secret, deploy.identity: neither is given"),
        (["deploy.identity={role: x}"], "deploy.secret, deploy.identity: both are given"),
        (["run.storage_options={key: a, secret: b}"], "run.storage_options: key, secret would stand readable"),
        (["run.workers=9"], "run.workers: 9, but deploy.tokenizers gives 1 x 1 = 1 GPUs"),
        (["run.workers=3", "deploy.tokenizers.max=8"], "5 pods would stand idle; say deploy.tokenizers.max: 3"),
        (["run.workers=5", "run.gpus_per_worker=0.25"], "1 x 1 = 1 GPUs, enough for 4"),
        (["run.gpus_per_worker=2"], "run.gpus_per_worker: 2, but a pod of deploy.tokenizers has 1 GPUs"),
        (["deploy.overlay=autoscaling", "run.workers=1"], "run.workers, run.gpus_per_worker: both are needed"),
        (["deploy.overlay=cpu", "deploy.readers.max=3"], "one tokenizer would work for 3 pods without GPUs"),
        (["deploy.overlay=cpu", "run.workers=4", "run.threads=2"], "run.workers x run.threads: 8 CPUs of 8"),
        (["deploy.readers.memory=16Gi"], "deploy.readers.memory: 16Gi, but 16 tasks with rows of 128Mi"),
        (["window.stride=1"], "rows of 442Mi (units.bytes, run.row_bytes, window)"),
        (["run.row_bytes=1073741824"], "deploy.readers.memory: 32Gi, but 16 tasks with rows of 1024Mi"),
        (["units.bytes=1073741824"], "deploy.readers.shm: 12Gi, but 16 read tasks put 16Gi there at once"),
        (["run.workers=64", "deploy.tokenizers={max: 8, gpus: 8}", "deploy.readers.shm=4Gi",
          "deploy.tokenizers.shm=4Gi"], "deploy.readers.shm: the object stores of all pods hold"),
        (["deploy.head.memory=4Gi"], "deploy.head.memory: 4Gi, but the job's own process and Ray's take"),
        (["run.grace_s=60"], "deploy.grace_s: 60, but a stopped job drains for run.grace_s (60 s)"),
        (["run.deadline='06:00'", "deploy.retries=2"], "deploy.retries: 2, but a run that run.deadline (06:00) stops"),
    ],
)  # fmt: skip
def test_check_deployment_refuses(settings, wanted):
    assert wanted in findings(*settings)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["deploy.schedule=0 22 * *"], "deploy.schedule: '0 22 * *' is no schedule"),
        (["deploy.time_zone=Mars/North"], "deploy.time_zone: 'Mars/North' is unknown"),
        (["run.deadline='2099-01-01T06:00'"], "run.deadline: 2099-01-01T06:00 comes once"),
        (["run.max_runtime=25h"], "run.max_runtime (25h): a run that starts at"),
        (["deploy.schedule=0 */4 * * *"], "after the next tick of deploy.schedule (0 */4 * * *)"),
        (["run.max_runtime=null", "run.deadline='22:05'"], "run.deadline (22:05): leaves 5 min to the run"),
        (["run.max_runtime=null", "run.deadline='22:00'"], "after the next tick of deploy.schedule"),
        (["run.max_runtime=null"], "run.deadline: missing, and run.max_runtime too"),
    ],
)
def test_check_deployment_refuses_a_clock_that_does_not_fit(settings, wanted):
    assert wanted in findings("deploy.start=nightly", *settings)


def test_check_deployment_lets_runs_overlap_where_one_leaves_or_waits():
    for settings in (["deploy.start=nightly", "run.when_active=leave"], ["deploy.start=standing"]):
        checked = check_deployment(load_config(RUN, ["run.max_runtime=null", *settings]))
        assert checked.longest_s is None


def test_check_deployment_names_everything_at_once():
    text = findings("run.local=true", "deploy.secret=null", "run.grace_s=60")
    assert text.count("\n- ") == 3


def test_load_config_offers_the_nearest_key_of_the_cluster():
    with pytest.raises(
        ConfigError, match=r"unknown key 'deploy.tokenizers.gpu'; did you mean 'deploy.tokenizers.gpus'"
    ):
        load_config(RUN, ["deploy.tokenizers.gpu=1"])


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("deploy.head.memory=8GB", "deploy.head.memory"),
        ("deploy.readers.shm=64Gi", "must lie below memory"),
        ("deploy.readers.min=3", r"min \(3\) lies above max \(1\)"),
        ("deploy.image=null", "deploy.image"),
    ],
)
def test_load_config_refuses_a_wrong_value_of_the_cluster(setting, wanted):
    with pytest.raises(ConfigError, match=wanted):
        load_config(RUN, [setting])
