"""As much of JSON Schema (2020-12) as the schemas of this project use; an unknown keyword is an error, not ignored."""

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
KNOWN = {"type", "properties", "required", "items", "enum", "minimum", "$ref", "$defs", "$schema", "$id", "title", "description"}


def errors(value, schema, root=None, path="$"):
    """What is wrong with the value, one sentence each."""
    root = root or schema
    assert schema.keys() <= KNOWN, f"{path}: keywords that schema.py does not know: {schema.keys() - KNOWN}"
    if "$ref" in schema:
        yield from errors(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, path)
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (kind in ("integer", "number") and isinstance(value, bool))):
        yield f"{path} is {value!r}, not of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} is {value!r}, not one of {schema['enum']}"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{path} is {value}, less than {schema['minimum']}"
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{path} has no {name}"
        for name, part in value.items():
            if name in schema.get("properties", {}):
                yield from errors(part, schema["properties"][name], root, f"{path}.{name}")
    if isinstance(value, list) and "items" in schema:
        for i, part in enumerate(value):
            yield from errors(part, schema["items"], root, f"{path}[{i}]")
