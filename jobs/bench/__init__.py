"""Speed, measured against what a plain script reaches in the same run. Read result.py first, then a measure_*.py."""
