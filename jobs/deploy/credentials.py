"""What must not stand in manifests, which people put under version control: credentials, wherever they are written.

Knows no manifest. A finding says where a credential stands, never what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pipeline.settings.deploy_config import DeployConfig
from pipeline.settings.job_config import JobConfig
from pipeline.settings.run_config import FROM_ENVIRONMENT
from pipeline.storage import without_secrets

_HIDDEN = re.compile(r"(?<!kms)(?<!kms_)key|secret|token|password|credential|auth|signature|connection_string", re.I)
"""Of options that may hold a credential; the name of a KMS key is none."""
_WEB_ADDRESS = re.compile(r"https?://[^\s'\"]+")


def credential_findings(job: JobConfig, deploy: DeployConfig) -> Iterator[str]:
    """Yield what is wrong with how the job gets its credentials, and with those that its configuration holds."""
    webhook = job.run.notify.webhook or ""
    is_told_secretly = webhook.startswith(FROM_ENVIRONMENT)
    if deploy.secret is None and not deploy.identity:
        yield (
            "deploy.secret, deploy.identity: neither is given; name a Secret with AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or the annotations that give the service account a role"
        )
    elif deploy.secret is not None and deploy.identity and not is_told_secretly:
        yield (
            "deploy.secret, deploy.identity: both are given, and keys of a Secret win over a role; leave one out"
            " (beside a role, a Secret is for run.notify.webhook: env:NAME)"
        )
    if is_told_secretly and deploy.secret is None:
        yield (
            f"run.notify.webhook: {webhook}, but no variable comes into the pods; name a Secret with the key"
            f" {webhook.removeprefix(FROM_ENVIRONMENT)} in deploy.secret"
        )
    tree = job.model_dump(mode="json", exclude_defaults=True)
    yield from _hidden_options(tree.get("run", {}).get("storage_options", {}))
    yield from _secret_addresses(job)
    for key, text in _texts(tree, ""):
        if without_secrets(text) != text:
            yield (
                f"{key}: its address holds a user, a password or a query, which would stand readable in the manifests;"
                " put credentials into the Secret that deploy.secret names"
            )


def _hidden_options(options: dict[str, Any]) -> Iterator[str]:
    hidden = sorted(path for path in _paths(options, "") if _HIDDEN.search(path.rpartition(".")[2]))
    if hidden:
        yield (
            f"run.storage_options: {', '.join(hidden)} would stand readable in a ConfigMap; put credentials into the"
            " Secret that deploy.secret names"
        )


def _secret_addresses(job: JobConfig) -> Iterator[str]:
    notify = job.run.notify
    if _may_be_secret(notify.webhook or ""):
        yield (
            "run.notify.webhook: the path of such an address is its secret, and would stand readable in a ConfigMap;"
            " put it into the Secret that deploy.secret names, as NOTIFY_WEBHOOK, and write env:NOTIFY_WEBHOOK"
        )
    if any(_may_be_secret(address) for address in _WEB_ADDRESS.findall(notify.command or "")):
        yield (
            "run.notify.command: an address with a path may be a secret, and would stand readable in a ConfigMap; have"
            " the program read it from the environment, or say run.notify.webhook: env:NOTIFY_WEBHOOK"
        )


def _may_be_secret(address: str) -> bool:
    """Return whether a web address holds more than a host."""
    try:
        return bool(_WEB_ADDRESS.fullmatch(address) and urlsplit(address).path.strip("/"))
    except ValueError:  # no address, and none that is safe to show
        return True


def _paths(node: Any, at: str) -> Iterator[str]:
    """Yield the dotted key of everything inside a tree, sections too; items of a list share the list's."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{at}{key}"
        for item in value if isinstance(value, list) else [value]:
            yield from _paths(item, f"{at}{key}.")


def _texts(node: Any, at: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and value of every text inside a tree."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{at}.{key}" if at else str(key))
    elif isinstance(node, list):
        for n, item in enumerate(node):
            yield from _texts(item, f"{at}[{n}]")
    elif isinstance(node, str):
        yield at, node
