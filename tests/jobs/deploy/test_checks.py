"""What a deployment is refused for: each finding names its field, what was found and what to write."""

from __future__ import annotations

import json

import pytest

from jobs.deploy.checks import check_deployment
from pipeline.errors import ConfigError
from pipeline.settings.job_config import load_config

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
        (["export.splits={by: file, file: splits.json}"], "export.splits.file: splits.json lies on one machine"),
        (["deploy.inputs=['memory://motion']"], "lies on one machine"),
        (["run.address=auto"], "run.address: auto, but the job runs on its own cluster"),
        (["deploy.secret=null"], "deploy.secret, deploy.identity: neither is given"),
        (["deploy.identity={role: x}"], "deploy.secret, deploy.identity: both are given"),
        (["deploy.secret=null", "deploy.identity={role: x}", "run.notify.webhook=env:HOOK"],
         "run.notify.webhook: env:HOOK, but no variable comes into the pods"),
        (["run.storage_options={key: a, secret: b}"], "run.storage_options: key, secret would stand readable"),
        (["run.workers=9"], "run.workers: 9, but deploy.tokenizers gives 1 x 1 = 1 GPUs"),
        (["run.workers=3", "deploy.tokenizers.max=8"], "5 pods would stand idle; say deploy.tokenizers.max: 3"),
        (["run.workers=5", "run.gpus_per_worker=0.25"], "1 x 1 = 1 GPUs, enough for 4"),
        (["run.gpus_per_worker=2"], "run.gpus_per_worker: 2, but a pod of deploy.tokenizers has 1 GPUs"),
        (["deploy.overlay=autoscaling", "run.workers=1"], "run.workers, run.gpus_per_worker: both are needed"),
        (["deploy.overlay=cpu", "deploy.readers.max=3"], "one tokenizer would work for 3 pods without GPUs"),
        (["deploy.overlay=cpu", "run.workers=4", "run.threads=2"], "run.workers x run.threads: 8 CPUs of 8"),
        (["run.grace_s=60"], "which drains for run.grace_s (60 s)"),
        (["run.grace_s=0", "deploy.grace_s=25"], "deploy.grace_s: 25, but 10 s pass until the head's hook"),
        (["run.grace_s=0", "deploy.grace_s=39"], "say at least 40"),
        (["run.deadline='06:00'", "deploy.retries=2"], "deploy.retries: 2, but a run that run.deadline (06:00) stops"),
    ],
)  # fmt: skip
def test_check_deployment_refuses(settings, wanted):
    assert wanted in findings(*settings)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--bogus"], "deploy.arguments: tokenize refuses the command (No such option: --bogus"),
        (["--workers", "many"], "deploy.arguments: tokenize refuses the command (Invalid value for '--workers'"),
        (["--preset", "other"], "deploy.arguments: no preset 'other'; there is artalk"),
        (["--preset"], "deploy.arguments: tokenize refuses the command"),
        (["--help"], "deploy.arguments: they ask for help"),
        (["--set", "run.workers=640"], "what --set says; write its keys into the configuration"),
        (["--local"], "what --local says; leave it out"),
        (["--address", "auto"], "what --address says; leave it out"),
        (["--dry-run"], "what --dry-run says; leave it out"),
        (["s3://other"], "the command has other inputs, output than"),
        (["--config", "s3://a/run.yaml"], "the command has other config than"),
        (["-c", "demo-arkit"], "the command has other checkpoint than"),
        (["--model-config", "codec.json"], "deploy.arguments, --model-config: codec.json lies on one machine"),
        (["--model-config", "s3://a/codec.json", "--preset", "artalk"], "give one of them"),
    ],
)
def test_check_deployment_reads_the_command_as_the_cluster_will(arguments, wanted):
    assert wanted in findings(f"deploy.arguments={json.dumps(arguments)}")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--workers", "640"], "run.workers"),
        (["--deadline", "21:59"], "run.deadline"),
        (["--max-runtime", "3h"], "run.max_runtime"),
        (["--log-format", "json"], "run.log_format"),
        (["--restart"], "run.restart"),
        (["--format", "parquet"], "export.formats"),
        (["--stride", "5"], "window.stride"),
        (["--precision", "float16"], "precision"),
        (["--batch-size", "4"], "batch_size"),
        (["--checksum"], "input.checksum"),
        (["--gate", "off"], "gate"),
        (["--clips", "s3://a/ids.txt"], "input.clips"),
        (["--exclude", "s3://a/ids.txt"], "input.clips.exclude"),
    ],
)
def test_check_deployment_names_the_key_in_the_place_of_an_option(arguments, key):
    text = findings(f"deploy.arguments={json.dumps(arguments)}")
    assert f"no check would see what {arguments[0]} says; write {key} into the configuration" in text


def test_check_deployment_refuses_a_place_that_is_read_as_an_option():
    assert "deploy.arguments: " in findings("deploy.inputs=['--checkpoint=s3://a', 's3://b', 's3://c']")


@pytest.mark.parametrize("arguments", [["--preset", "artalk"], ["--model-config", "s3://a/codec.json"]])
def test_check_deployment_accepts_options_without_a_key(arguments):
    check_deployment(load_config(RUN, [f"deploy.arguments={json.dumps(arguments)}"]))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["deploy.time_zone=Mars/North"], "deploy.time_zone: 'Mars/North' is unknown"),
        (["deploy.time_zone=../tz"], "deploy.time_zone: '../tz' is unknown"),
        (["run.max_runtime=soon"], "duration 'soon': write 90m"),
        (["run.deadline='2099-01-01T06:00'"], "run.deadline: 2099-01-01T06:00 comes once"),
        (["run.max_runtime=null"], "may be active at the next start"),
        (["run.max_runtime=25h"], "may be active at the next start"),
        (["run.max_runtime=8h", "deploy.retries=2"], "may be active at the next start"),
        (["deploy.schedule=0 */4 * * *"], "deploy.schedule (0 */4 * * *)"),
        (["run.max_runtime=null", "run.deadline='22:00'"], "may be active at the next start"),
        (["deploy.schedule=0 22 * *"], "deploy.schedule: '0 22 * *' is no schedule"),
        (["deploy.schedule=99 99 * * 7"], "is no schedule"),
    ],
)
def test_check_deployment_refuses_a_clock_that_does_not_fit(settings, wanted):
    assert wanted in findings("deploy.start=nightly", *settings)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("run.storage_options={client_kwargs: {aws_secret_access_key: hidden}}",
         "run.storage_options: client_kwargs.aws_secret_access_key would stand readable"),
        ("run.storage_options={a: [{headers: {Authorization: hidden}}]}", "a.headers.Authorization would stand"),
        ("run.storage_options={connection_string: hidden}", "connection_string would stand readable"),
        ("run.storage_options={endpoint_url: 'https://me:hidden@s3.test'}", "run.storage_options.endpoint_url: its"),
        ("run.notify.webhook=https://hooks.test/hidden", "and write env:NOTIFY_WEBHOOK"),
        ("run.notify.webhook=https://hidden@hooks.test", "run.notify.webhook: its address holds a user"),
        ("run.notify.webhook='https://hooks.test?t=hidden'", "run.notify.webhook: its address holds a user"),
        ("run.notify.webhook='https://[hidden/'", "and write env:NOTIFY_WEBHOOK"),
        ("run.notify.command=curl -d @- https://hooks.test/hidden", "run.notify.command: an address with a path"),
        ("deploy.output=s3://me:hidden@bucket/tokens", "deploy.output: its address holds a user"),
        ("deploy.inputs=['talk=s3://me:hid/den@bucket/']", "deploy.inputs[0]: its address holds a user"),
        ("deploy.checkpoint='https://host.test/codec.pt?X-Amz-Signature=hidden'", "deploy.checkpoint: its address"),
        ("export.clips.include=file://me:hidden@host/ids.txt", "export.clips.include: its address holds a user"),
        ("deploy.arguments=[--model-config, 's3://me:hidden@bucket/a.json']", "deploy.arguments[1]: its address"),
    ],
)  # fmt: skip
def test_check_deployment_refuses_a_credential_and_does_not_show_it(setting, wanted):
    text = findings(setting)
    assert wanted in text
    assert "hidden" not in text
    assert "hid/den" not in text


@pytest.mark.parametrize(
    "settings",
    [
        ["run.storage_options={endpoint_url: 'https://s3.test/store', s3_additional_kwargs: {SSEKMSKeyId: a}}"],
        ["run.notify.webhook=http://alerts:9093"],
        ["run.notify.webhook=env:HOOK"],
        ["run.notify.webhook=env:HOOK", "deploy.identity={role: x}"],
        ["run.notify.command=mail -s tokens team@example.org"],
        ["deploy.inputs=[s3://motion/take@2x/]"],
    ],
)
def test_check_deployment_accepts_what_is_no_credential(settings):
    check_deployment(load_config(RUN, settings))


@pytest.mark.parametrize(
    ("settings", "longest_s"),
    [
        (["run.max_runtime=7h"], 7 * 3600),
        (["run.max_runtime=null", "run.deadline='06:00'", "deploy.start=nightly"], 8 * 3600),
        (["run.max_runtime=3h", "run.deadline='06:00'", "deploy.start=nightly"], 3 * 3600),
    ],
)
def test_check_deployment_says_how_long_a_try_may_last(settings, longest_s):
    assert check_deployment(load_config(RUN, settings)).longest_s == longest_s + 1.5 + 20 + 5


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
        ("deploy.labels={ray.io/cluster: x}", "deploy.labels: ray.io/cluster: the manifests and KubeRay set these"),
    ],
)
def test_load_config_refuses_a_wrong_value_of_the_cluster(setting, wanted):
    with pytest.raises(ConfigError, match=wanted):
        load_config(RUN, [setting])
