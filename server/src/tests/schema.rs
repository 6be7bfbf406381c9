//! Whether a value is what a schema of the OpenAPI document says: strictly, so a field that no schema describes is an error,
//! and so is a word in a schema that this doesn't know.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Words that say nothing about a value.
const ABOUT: [&str; 6] = ["description", "title", "format", "propertyNames", "example", "default"];

/// Checks values, and notes which of the fields that are described were there.
pub(super) struct Checker<'a> {
    document: &'a Value,
    /// Fields by their place: the schema's name and the fields down to it.
    pub(super) seen: BTreeSet<String>,
}

type Checked = Result<BTreeSet<String>, String>;

impl<'a> Checker<'a> {
    pub(super) fn new(document: &'a Value) -> Self {
        Self { document, seen: BTreeSet::new() }
    }

    /// The value must be what the schema says.
    pub(super) fn check(&mut self, schema: &Value, value: &Value, what: &str) {
        match self.matches(schema, value, "", "$") {
            Ok(seen) => self.seen.extend(seen),
            Err(why) => panic!("{what}: {why}\n{value}"),
        }
    }

    fn resolve(&self, reference: &Value) -> Option<(&'a str, &'a Value)> {
        let name = reference.as_str()?.strip_prefix("#/components/schemas/")?;
        let (name, schema) = self.document["components"]["schemas"].as_object()?.get_key_value(name)?;
        Some((name, schema))
    }

    /// What was seen, or what is wrong. `place` is where the schema is described, `at` where the value is.
    fn matches(&self, schema: &Value, value: &Value, place: &str, at: &str) -> Checked {
        let Value::Object(words) = schema else { return Err(format!("{at}: no schema: {schema}")) };
        let mut seen = BTreeSet::new();
        if let Some(reference) = words.get("$ref") {
            let (name, schema) = self.resolve(reference).ok_or_else(|| format!("{at}: there is no {reference}"))?;
            return self.matches(schema, value, name, at);
        }
        for (word, said) in words {
            match (word.as_str(), said) {
                ("oneOf", Value::Array(shapes)) => seen.extend(self.one_of(shapes, value, place, at)?),
                ("allOf", Value::Array(_)) | ("properties" | "required" | "additionalProperties", _) => {}
                ("type", said) => check_type(said, value, at)?,
                ("enum", Value::Array(values)) if !values.contains(value) => {
                    return Err(format!("{at}: {value} is none of {said}"));
                }
                ("minimum", said) if value.as_f64() < said.as_f64() && value.is_number() => {
                    return Err(format!("{at}: {value} is below {said}"));
                }
                ("items", items) => {
                    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                        let place = format!("{place}[]");
                        seen.extend(self.matches(items, value, &place, &format!("{at}[{index}]"))?);
                    }
                }
                ("enum" | "minimum", _) => {}
                (word, _) if ABOUT.contains(&word) => {}
                (word, said) => return Err(format!("{at}: nobody here knows what `{word}`: {said} asks for")),
            }
        }
        if let Value::Object(fields) = value {
            seen.extend(self.object(schema, fields, place, at)?);
        }
        Ok(seen)
    }

    fn one_of(&self, shapes: &[Value], value: &Value, place: &str, at: &str) -> Checked {
        let tried: Vec<Checked> = shapes
            .iter()
            .enumerate()
            .map(|(index, shape)| self.matches(shape, value, &format!("{place}({index})"), at))
            .collect();
        match tried.iter().filter(|tried| tried.is_ok()).count() {
            1 => Ok(tried.into_iter().find_map(Result::ok).unwrap_or_default()),
            0 => Err(format!("{at}: none of the shapes: {}", errors(&tried))),
            several => Err(format!("{at}: {several} of the shapes")),
        }
    }

    /// Fields of an object, those of `allOf` among them.
    fn object(&self, schema: &Value, fields: &Map<String, Value>, place: &str, at: &str) -> Checked {
        let (mut known, mut required, mut others) = (Vec::new(), BTreeSet::new(), None);
        self.gather(schema, place, &mut known, &mut required, &mut others);
        if known.is_empty() && others.is_none() {
            // A choice among shapes, or an object that may hold anything.
            return Ok(BTreeSet::new());
        }
        if let Some(missing) = required.iter().find(|name| !fields.contains_key(**name)) {
            return Err(format!("{at}: there is no `{missing}`"));
        }
        let mut seen = BTreeSet::new();
        for (name, value) in fields {
            let at = format!("{at}.{name}");
            match (known.iter().find(|(known, _, _)| known == name), others) {
                (Some((_, place, schema)), _) => {
                    seen.insert(place.clone());
                    seen.extend(self.matches(schema, value, place, &at)?);
                }
                (None, Some(Value::Bool(true))) => {}
                (None, Some(others @ Value::Object(_))) => seen.extend(self.matches(others, value, place, &at)?),
                (None, _) => return Err(format!("{at} isn't described")),
            }
        }
        Ok(seen)
    }

    fn gather<'s>(
        &self,
        schema: &'s Value,
        place: &str,
        known: &mut Vec<(&'s str, String, &'s Value)>,
        required: &mut BTreeSet<&'s str>,
        others: &mut Option<&'s Value>,
    ) where
        'a: 's,
    {
        if let Some((name, schema)) = self.resolve(&schema["$ref"]) {
            return self.gather(schema, name, known, required, others);
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.gather(part, place, known, required, others);
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            known.push((name, format!("{place}.{name}"), field));
        }
        required.extend(schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str));
        *others = schema.get("additionalProperties").or(*others);
    }

    /// All fields that a schema describes, by their places, as [`Checker::seen`] has them.
    pub(super) fn described(&self, schema: &Value) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        self.describe(schema, "", &mut all);
        all
    }

    fn describe(&self, schema: &Value, place: &str, all: &mut BTreeSet<String>) {
        if let Some((name, schema)) = self.resolve(&schema["$ref"]) {
            return self.describe(schema, name, all);
        }
        let (mut known, mut required, mut others) = (Vec::new(), BTreeSet::new(), None);
        self.gather(schema, place, &mut known, &mut required, &mut others);
        for (_, place, schema) in known {
            if all.insert(place.clone()) {
                self.describe(schema, &place, all);
            }
        }
        for (index, shape) in schema["oneOf"].as_array().into_iter().flatten().enumerate() {
            self.describe(shape, &format!("{place}({index})"), all);
        }
        if schema["items"].is_object() {
            self.describe(&schema["items"], &format!("{place}[]"), all);
        }
    }
}

fn errors(tried: &[Checked]) -> String {
    let errors: Vec<&str> = tried.iter().filter_map(|tried| tried.as_ref().err().map(String::as_str)).collect();
    errors.join("; ")
}

fn check_type(said: &Value, value: &Value, at: &str) -> Result<(), String> {
    let is = |kind: &Value| match kind.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => false,
    };
    let is_one = said.as_array().map_or_else(|| is(said), |kinds| kinds.iter().any(is));
    if is_one { Ok(()) } else { Err(format!("{at}: {value} is no {said}")) }
}

#[test]
fn what_is_wrong_with_a_value_is_found() {
    use serde_json::json;
    let document = json!({"components": {"schemas": {
        "Inner": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 0}}},
        "Whole": {"allOf": [
            {"$ref": "#/components/schemas/Inner"},
            {"type": "object", "required": ["b"], "properties": {
                "b": {"type": ["string", "null"]},
                "c": {"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/Inner"}]},
                "d": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
                "e": {"type": "object", "additionalProperties": {"type": "number"}},
            }},
        ]},
    }}});
    let whole = json!({"$ref": "#/components/schemas/Whole"});
    let checker = Checker::new(&document);
    let check = |value: Value| checker.matches(&whole, &value, "", "$");
    let all = check(json!({"a": 1, "b": null, "c": {"a": 2}, "d": ["x", "y"], "e": {"f": 0.5}})).unwrap();
    assert_eq!(all, checker.described(&whole));
    assert!(!check(json!({"a": 1, "b": "x", "c": null})).unwrap().contains("Whole.d"));
    for (value, why) in [
        (json!({"b": ""}), "there is no `a`"),
        (json!({"a": 1}), "there is no `b`"),
        (json!({"a": -1, "b": ""}), "$.a: -1 is below 0"),
        (json!({"a": 1.5, "b": ""}), "$.a: 1.5 is no"),
        (json!({"a": 1, "b": 2}), "$.b: 2 is no"),
        (json!({"a": 1, "b": "", "z": 1}), "$.z isn't described"),
        (json!({"a": 1, "b": "", "c": {}}), "none of the shapes"),
        (json!({"a": 1, "b": "", "c": {"a": 1, "z": 1}}), "$.c.z isn't described"),
        (json!({"a": 1, "b": "", "d": ["x", "z"]}), "$.d[1]: \"z\" is none of"),
        (json!({"a": 1, "b": "", "e": {"f": ""}}), "$.e.f: \"\" is no"),
    ] {
        let found = check(value.clone()).expect_err(&value.to_string());
        assert!(found.contains(why), "{value}: {found}");
    }
    let odd = checker.matches(&json!({"type": "string", "pattern": "x"}), &json!("x"), "", "$").unwrap_err();
    assert!(odd.contains("`pattern`"), "{odd}");
}
