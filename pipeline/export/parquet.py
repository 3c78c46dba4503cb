"""Token rows -> one Parquet shard.

Knows no Ray, torch or storage.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.contract.schema import CONTRACT_KEY, TOKEN_ROW_GROUP_ROWS
from pipeline.contract.specs import Contract
from pipeline.hashing import canonical_json
from pipeline.token_store import tokens_to_parquet


def shard_to_parquet(tokens: pa.Table, contract: Contract, group_rows: int = TOKEN_ROW_GROUP_ROWS) -> bytes:
    """Return a Parquet shard: token rows, the contract in its footer.

    Args:
        group_rows: rows of a row group at most.
    """
    footer = {CONTRACT_KEY: canonical_json(contract.model_dump(mode="json")).encode()}
    return tokens_to_parquet(tokens, footer, group_rows)
