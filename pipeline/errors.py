"""The error tree: one class an event, each with the exit code of the command that meets it.

Knows nothing else of the project. A clip that is dropped is no error: see contract/drop_reasons.py.
"""

from __future__ import annotations

import os


class MotionTokensError(Exception):
    """Base of every error that a person can act upon; the message names finding and next step."""

    exit_code = os.EX_SOFTWARE  # 70


class RequestError(MotionTokensError):
    """The request cannot start: no fragment was written for it."""

    exit_code = 2


class ConfigError(RequestError):
    """A configuration key or value is wrong."""


class InputNotFoundError(RequestError):
    """A named input does not exist or holds no motion."""


class InputFormatError(RequestError):
    """A file named directly has an unknown format."""


class CodecError(RequestError):
    """The checkpoint cannot be used: unreadable, another architecture, or it does not fit."""


class OutputMismatchError(RequestError):
    """The output holds something else than this run would continue."""


class ContractMismatchError(RequestError):
    """Tokens of a dataset mean something else than they are wanted for."""


class StreamStateError(RequestError):
    """The state of a stream cannot be told here, or is of another stream."""


class DataError(MotionTokensError):
    """The data is wrong; trying again would not help."""

    exit_code = os.EX_DATAERR  # 65


class NoClipLeftError(DataError):
    """Every clip was dropped."""


class VerifyError(DataError):
    """A dataset does not hold what its manifest promises."""


class DamagedFragmentError(VerifyError):
    """A fragment of a token store holds other bytes than were written."""


class GateFailedError(DataError):
    """Decoded tokens are too far from the motion they were made from."""


class IncompleteError(MotionTokensError):
    """Work is missing but can be resumed by the same command."""

    exit_code = os.EX_TEMPFAIL  # 75


class ActiveRunError(IncompleteError):
    """Another run works on the same output."""


class ResourcesError(IncompleteError):
    """The cluster has no place for what the job asks for."""


class StorageError(IncompleteError):
    """Storage did not answer after all retries."""


class OwnershipLostError(IncompleteError):
    """Another run has taken over the output."""


class UploadAbandonedError(StorageError):
    """A file was stopped on its way by another run."""


class OutputError(StorageError):
    """The output cannot be written: no space, no permission; waiting alone would not help."""

    exit_code = os.EX_IOERR  # 74
