"""Advisory schemas of payloads: JSON Schema by jsonschema, or pydantic models. Loaded only when used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from otledger.errors import ConfigurationError

Check = Callable[[bytes, Any], str | None]
"""Takes a payload's JSON text and the payload, gives what does not fit, or None."""


def compile_schemas(schemas: Mapping[str, Any]) -> dict[str, Check]:
    """Give a check for each type. Raises `ConfigurationError` for what is no schema, or without the library."""
    return {type: _compile(type, schema) for type, schema in schemas.items()}


def _compile(type: str, schema: Any) -> Check:
    if isinstance(schema, Mapping | bool):
        return _json_schema(type, schema)
    if hasattr(schema, "model_validate_json"):
        return _model(schema)
    raise ConfigurationError(
        f"the schema of {type!r} is of type {schema.__class__.__name__}: it must be a JSON Schema (a mapping) or a"
        " pydantic model"
    )


def _json_schema(type: str, schema: Any) -> Check:
    try:
        from jsonschema import SchemaError, validators
        from referencing import Registry
    except ImportError:
        raise ConfigurationError("JSON Schemas need jsonschema: pip install 'otledger[schemas]'") from None
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ConfigurationError(f"the schema of {type!r} is no JSON Schema: {error.message}") from None
    # An empty registry: nothing is ever fetched from the network.
    validator = kind(schema, registry=Registry())

    def check(raw: bytes, _: Any) -> str | None:
        for error in validator.iter_errors(orjson.loads(raw)):
            return f"{error.json_path}: {error.message}"
        return None

    return check


def _model(model: Any) -> Check:
    from pydantic import ValidationError

    def check(raw: bytes, _: Any) -> str | None:
        try:
            model.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f".{part}" for part in first["loc"])
            return f"${where}: {first['msg']}"
        return None

    return check
