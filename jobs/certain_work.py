"""Whether a request will come to work, told before anything heavy is imported: then Ray can start meanwhile.

Knows names of places only, and neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitwise_vae.config import PRETRAINED
from pipeline.job_config import TokenizeRequest
from pipeline.manifest import is_published
from pipeline.observer import JobObserver
from pipeline.storage import Folder, parent_and_name


def is_work_certain(request: TokenizeRequest, observer: JobObserver) -> bool:
    """Return whether windows will be encoded, as far as names tell: nothing is published, and what is read is there.

    Remote inputs are taken to be there: looking would list them twice.

    Args:
        observer: told where they will, for then Ray starts.
    """
    options = request.config.run.storage_options
    if is_published(Folder(request.output, options)):
        return False
    needed = [place.rpartition("=")[2] for place in request.inputs if "://" not in place]
    if request.checkpoint not in PRETRAINED:
        needed.append(request.checkpoint)
    if not all(_stands(place, options) for place in needed):
        return False
    observer.on_stage("session")
    return True


def _stands(place: str, options: Mapping[str, Any]) -> bool:
    """Return whether a file or folder is there; a glob counts as its folder."""
    fixed, star, _ = place.partition("*")
    folder, name = parent_and_name((fixed.rpartition("/")[0] or ".") if star else place, options)
    return folder.exists(name) or bool(folder.child(name).list_names())
