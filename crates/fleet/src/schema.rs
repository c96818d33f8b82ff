//! The JSON Schema of fleet files, for editors: from the table of keys.
//!
//! It says what one key may be, as far as JSON Schema can; what keys mean together is for `mainstay check`.

use serde_json::{Map, Value, json};

use crate::keys::{FILE, Key, Section, Shape};

/// The schema, draft 2020-12.
pub fn schema() -> Value {
    let Value::Object(mut root) = section(&FILE, false) else { return Value::Null };
    root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("title".to_owned(), json!("Mainstay fleet file"));
    root.insert("patternProperties".to_owned(), json!({ "^x-": {} }));
    Value::Object(root)
}

/// The schema as it is committed and printed: with line breaks, and one at its end.
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

const NAME: &str = "^[a-z][a-z0-9-]{0,40}$";
const DURATION: &str = "^(0|([0-9]+(ms|s|m|h|d|w|y) *)+)$";

/// `partial`: nothing is required, and null takes a value away.
fn section(section: &Section, partial: bool) -> Value {
    let properties: Map<String, Value> =
        section.keys.iter().map(|key| (key.name.to_owned(), property(key, partial))).collect();
    let required: Vec<&str> =
        section.keys.iter().filter(|key| key.required && !partial).map(|key| key.name).collect();
    let mut schema = json!({
        "type": "object",
        "description": section.about,
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn property(key: &Key, partial: bool) -> Value {
    let mut schema = value(&key.shape, partial);
    if partial {
        schema = json!({ "anyOf": [schema, { "type": "null" }] });
    }
    schema["description"] = json!(key.about);
    if !key.default.is_empty() {
        schema["description"] = json!(format!("{} Default: {}.", key.about, key.default));
    }
    schema
}

fn value(shape: &Shape, partial: bool) -> Value {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    let named = |inner: &Section, partial: bool| {
        json!({
            "type": "object",
            "propertyNames": { "pattern": NAME },
            "additionalProperties": section(inner, partial),
        })
    };
    match shape {
        Shape::Name => text(NAME),
        Shape::Text => json!({ "type": "string", "minLength": 1 }),
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Count(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Shape::Duration | Shape::DurationOrNever => {
            let never = matches!(shape, Shape::DurationOrNever);
            let pattern = if never { format!("^never$|{DURATION}") } else { DURATION.to_owned() };
            json!({ "type": ["string", "integer"], "pattern": pattern, "maximum": 0, "minimum": 0 })
        }
        Shape::Size => json!({
            "type": ["string", "integer"], "minimum": 0, "pattern": r"^[0-9]+(\.[0-9]+)? *(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?$",
        }),
        Shape::Schedule => json!({ "type": "string", "minLength": 1 }),
        Shape::Version => json!({ "type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+){0,3}$" }),
        Shape::VaultUrl => text("^(file:|s3://).+"),
        Shape::Endpoint => text("^https?://.+"),
        Shape::Secret => text("^(env|file|exec):.+"),
        Shape::Recipient => text("^age1[02-9ac-hj-np-z]{58}$"),
        Shape::HostPort => text("^.+:[0-9]{1,5}$"),
        Shape::Path => json!({ "type": "string", "minLength": 1 }),
        Shape::Choice(words) => json!({ "enum": words }),
        Shape::List(item) => json!({ "type": "array", "items": value(item, false) }),
        Shape::Section(inner) => section(inner, partial),
        Shape::ChoiceOrSection(words, inner) => {
            json!({ "anyOf": [{ "enum": words }, section(inner, partial)] })
        }
        Shape::Nodes => json!({ "anyOf": [
            { "type": "integer", "minimum": 1 },
            { "type": "array", "minItems": 1, "uniqueItems": true, "items": value(&Shape::HostPort, false) },
        ] }),
        Shape::Named(inner) => named(inner, partial),
        Shape::Overrides(inner) => named(inner, true),
        Shape::Settings => {
            let scalars = if partial {
                json!(["string", "number", "boolean", "null"])
            } else {
                json!(["string", "number", "boolean"])
            };
            json!({ "type": "object", "additionalProperties": { "type": scalars } })
        }
        Shape::Later => json!({ "type": ["object", "array"] }),
    }
}
