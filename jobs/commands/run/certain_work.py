"""Whether a request will come to work, told before anything heavy is imported: then Ray can start meanwhile.

Knows names of places only, and neither torch nor Ray.
"""

from __future__ import annotations

from bitwise_vae.config import PRETRAINED
from pipeline.dataset.manifest import is_published
from pipeline.run.observer import JobObserver
from pipeline.settings.job_config import TokenizeRequest
from pipeline.storage import Folder, is_input_there, parent_and_name


def is_work_certain(request: TokenizeRequest, observer: JobObserver) -> bool:
    """Return whether windows will be encoded, as far as names tell: nothing is published, and what is read is there.

    Remote inputs are taken to be there: looking would list them twice.

    Args:
        observer: told where they will, for then Ray starts.
    """
    options = request.config.run.storage_options
    if is_published(Folder(request.output, options)):
        return False
    if request.checkpoint not in PRETRAINED:
        folder, name = parent_and_name(request.checkpoint, options)
        if not folder.exists(name):
            return False
    if not all("://" in item or is_input_there(item, options) for item in request.inputs):
        return False
    observer.on_stage("session")
    return True
