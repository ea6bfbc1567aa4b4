//! Holds what is answered against what the API's description says: a client made from it must be able to read every answer.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use integration_tests::Response;
use serde_json::Value;

fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| serde_json::to_value(control_plane::http::openapi::document()).unwrap())
}

fn references<'v>(value: &'v Value, into: &mut Vec<&'v str>) {
    match value {
        Value::Object(members) => {
            into.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|member| references(member, into));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}

#[test]
fn whatever_the_description_refers_to_is_in_it() {
    let mut all = Vec::new();
    references(document(), &mut all);
    assert!(all.len() > 100);
    let lost: Vec<_> =
        all.into_iter().filter(|one| document().pointer(one.trim_start_matches('#')).is_none()).collect();
    assert_eq!(lost, Vec::<&str>::new());
}

/// What the description has of such an answer.
fn description_of(operation_id: &str, answer: &Response) -> &'static Value {
    let operations =
        document()["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let operation = operations.into_iter().find(|operation| operation["operationId"] == operation_id);
    let operation = operation.unwrap_or_else(|| panic!("no operation {operation_id}"));
    let status = answer.status.as_u16().to_string();
    let described = &operation["responses"][&status];
    assert!(described.is_object(), "{operation_id} answers {status}, which is not described");
    described
}

/// Fails unless the description says of such an answer that it may be a repeated one, and this one says that it is.
pub(crate) fn check_replay(operation_id: &str, answer: &Response) {
    let header = &description_of(operation_id, answer)["headers"]["idempotent-replayed"];
    assert!(header.is_object(), "{operation_id} does not describe the header of a repeated {}", answer.status);
    assert_eq!(answer.header("idempotent-replayed"), "true", "{operation_id}");
}

/// Fails unless the answer is one that the description has for this operation, in every member and every word of an enum.
pub(crate) fn check(operation_id: &str, answer: &Response) {
    let described = description_of(operation_id, answer);
    let status = answer.status;
    let essence = answer.header("content-type").split(';').next().unwrap_or_default();
    let schema = match essence {
        "application/json" => &described["content"]["application/json"]["schema"],
        "application/problem+json" => &described["content"]["application/json"]["schema"],
        _ => return,
    };
    assert!(schema.is_object(), "{operation_id} answers {status} with a body that is not described: {}", answer.text());
    let mut wrong = Vec::new();
    compare(schema, &answer.json(), "", &mut wrong);
    assert!(wrong.is_empty(), "{operation_id}: {wrong:#?}");
}

/// Fails unless what an endpoint was told is what the description has for events of this type.
pub(crate) fn check_event(event: &Value) {
    let kind = event["type"].as_str().unwrap_or_else(|| panic!("an event without a type: {event}"));
    let described = &document()["webhooks"][kind]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert!(described.is_object(), "{kind} is not described");
    let mut wrong = Vec::new();
    compare(described, event, "", &mut wrong);
    assert!(wrong.is_empty(), "{event}: {wrong:#?}");
}

fn resolved(schema: &Value) -> &Value {
    match schema["$ref"].as_str() {
        Some(reference) => resolved(document().pointer(reference.trim_start_matches('#')).unwrap()),
        None => schema,
    }
}

/// The members that a schema names, with those of the parts that it is made of, and the names of those that must be there.
fn members<'s>(schema: &'s Value, into: &mut BTreeMap<&'s str, &'s Value>, required: &mut Vec<&'s str>) {
    let schema = resolved(schema);
    into.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, member)| (name.as_str(), member)));
    required.extend(schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str));
    for part in schema["allOf"].as_array().into_iter().flatten() {
        members(part, into, required);
    }
}

fn compare(schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let schema = resolved(schema);
    for choice in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[choice].as_array() {
            let fits = |choice: &Value| {
                let mut wrong = Vec::new();
                compare(choice, value, at, &mut wrong);
                wrong.is_empty()
            };
            if !choices.iter().any(fits) {
                wrong.push(format!("{at}: {value} is none of {schema}"));
            }
            return;
        }
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ if schema["allOf"].is_array() => vec!["object"],
        _ => return,
    };
    let is_of = |kind: &str| match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("{at}: unknown type {other}"),
    };
    if !kinds.iter().any(|kind| is_of(kind)) {
        wrong.push(format!("{at}: {value} is no {kinds:?}"));
    }
    if let Some(words) = schema["enum"].as_array()
        && !value.is_null()
        && !words.contains(value)
    {
        wrong.push(format!("{at}: {value} is none of {words:?}"));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        compare(&schema["items"], item, &format!("{at}/{index}"), wrong);
    }
    if let Some(object) = value.as_object() {
        let (mut known, mut required) = (BTreeMap::new(), Vec::new());
        members(schema, &mut known, &mut required);
        let missing = required.iter().filter(|name| !object.contains_key(**name));
        wrong.extend(missing.map(|name| format!("{at}: {name} is missing")));
        // An object without members of its own is any object.
        if known.is_empty() && !schema["additionalProperties"].is_object() {
            return;
        }
        for (name, member) in object {
            match known.get(name.as_str()) {
                Some(described) => compare(described, member, &format!("{at}/{name}"), wrong),
                None if schema["additionalProperties"].is_object() => {
                    compare(&schema["additionalProperties"], member, &format!("{at}/{name}"), wrong);
                }
                None => wrong.push(format!("{at}: {name} is not described")),
            }
        }
    }
}
