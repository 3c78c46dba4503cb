"""Commands that make codecs: stats and train. Read codec_cli.py first."""
