"""Token rows -> one Parquet shard.

Knows no Ray, torch or storage.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.config import Contract, canonical_json
from pipeline.schema import CONTRACT_KEY
from pipeline.token_store import tokens_to_parquet


def shard_to_parquet(tokens: pa.Table, contract: Contract) -> bytes:
    """Return a Parquet shard: token rows, the contract in its footer."""
    return tokens_to_parquet(tokens, {CONTRACT_KEY: canonical_json(contract.model_dump(mode="json")).encode()})
