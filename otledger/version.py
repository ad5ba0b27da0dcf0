"""The version of this otledger."""

VERSION = "0.1.0"
