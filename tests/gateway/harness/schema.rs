//! JSON Schema, as much of it as `docs/frames.schema.json` needs; a keyword that is not known here is a panic, not a pass.
//!
//! A crate for that would have other features of `regex` and `serde_json` turned on in tests than in the program (`unicode`,
//! `float_roundtrip`), and tests of filters and values would pass over what users get.

use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Value};

/// How much of a value is quoted.
const QUOTED_CHARS_MAX: usize = 200;

/// A schema whose definitions refer to each other.
pub struct Schema {
    definitions: Map<String, Value>,
    patterns: HashMap<String, Regex>,
}

impl Schema {
    /// The definitions of this document.
    pub fn new(document: &Value) -> Schema {
        let mut patterns = HashMap::new();
        compile(document, &mut patterns);
        Schema { definitions: document["$defs"].as_object().unwrap().clone(), patterns }
    }

    /// Whether a value is as the definition of this name has it; else where it is not, and why.
    pub fn fits(&self, name: &str, value: &Value) -> Result<(), String> {
        let definition = self.definitions.get(name).ok_or_else(|| format!("there is no definition of {name}"))?;
        self.keeps(definition, value)
    }

    fn keeps(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = schema.as_object().expect("a schema is an object");
        schema.iter().try_for_each(|(keyword, demand)| self.keeps_keyword(schema, keyword, demand, value))
    }

    fn keeps_keyword(
        &self,
        schema: &Map<String, Value>,
        keyword: &str,
        demand: &Value,
        value: &Value,
    ) -> Result<(), String> {
        // Most keywords demand something of one type, and nothing of others.
        let number = || demand.as_f64().expect("a number");
        let of_text = |keeps: &dyn Fn(&str) -> bool| value.as_str().is_none_or(keeps);
        let of_list = |keeps: &dyn Fn(&Vec<Value>) -> bool| value.as_array().is_none_or(keeps);
        let of_object = |keeps: &dyn Fn(&Map<String, Value>) -> bool| value.as_object().is_none_or(keeps);
        let kept = match keyword {
            "title" | "description" | "examples" => true,
            "$ref" => {
                let name = demand.as_str().and_then(|reference| reference.strip_prefix("#/$defs/"));
                return self.fits(name.expect("a reference to a definition"), value);
            }
            "oneOf" => return self.keeps_one(list(demand), value),
            "properties" => return self.keeps_each(demand, value),
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                return items.into_iter().try_for_each(|(index, item)| at(index, self.keeps(demand, item)));
            }
            "additionalProperties" => {
                assert_eq!(*demand, Value::Bool(false), "all else is not known here");
                let strange = |name: &&String| schema["properties"].get(name.as_str()).is_none();
                let strange = value.as_object().and_then(|fields| fields.keys().find(strange));
                return strange.map_or(Ok(()), |name| Err(format!("{name:?} is not documented")));
            }
            "const" => value == demand,
            "enum" => list(demand).contains(value),
            "type" if demand.is_array() => list(demand).iter().any(|name| is_a(name, value)),
            "type" => is_a(demand, value),
            "required" => of_object(&|fields| list(demand).iter().all(|name| fields.contains_key(text(name)))),
            "minProperties" => of_object(&|fields| fields.len() as f64 >= number()),
            "minItems" => of_list(&|items| items.len() as f64 >= number()),
            "minLength" => of_text(&|text| text.chars().count() as f64 >= number()),
            "maxLength" => of_text(&|text| text.chars().count() as f64 <= number()),
            "pattern" => of_text(&|value| self.patterns[text(demand)].is_match(value)),
            "minimum" => value.as_f64().is_none_or(|value| value >= number()),
            "maximum" => value.as_f64().is_none_or(|value| value <= number()),
            other => panic!("the keyword {other} is not known here"),
        };
        match kept {
            true => Ok(()),
            false => Err(format!("not {keyword} {demand}: {}", quoted(value))),
        }
    }

    fn keeps_one(&self, choices: &[Value], value: &Value) -> Result<(), String> {
        let mut findings = Vec::new();
        let mut kept = 0;
        for choice in choices.iter().filter(|choice| !self.is_of_another_kind(choice, value)) {
            match self.keeps(choice, value) {
                Ok(()) => kept += 1,
                Err(finding) => findings.push(finding),
            }
        }
        match kept {
            1 => Ok(()),
            0 if findings.is_empty() => Err(format!("of no kind that is documented: {}", quoted(value))),
            0 => Err(findings.join(", and: ")),
            _ => Err(format!("{kept} of {choices:?}: {}", quoted(value))),
        }
    }

    /// Whether a constant, such as a type, says that the value is not meant to be this. (The others are then no findings.)
    fn is_of_another_kind(&self, choice: &Value, value: &Value) -> bool {
        let reference = choice.get("$ref").and_then(|reference| text(reference).strip_prefix("#/$defs/"));
        let choice = reference.map_or(choice, |name| &self.definitions[name]);
        let properties = choice.get("properties").and_then(Value::as_object).into_iter().flatten();
        properties.into_iter().any(|(name, schema)| match (schema.get("const"), value.get(name)) {
            (Some(constant), Some(field)) => constant != field,
            _ => false,
        })
    }

    fn keeps_each(&self, schemas: &Value, value: &Value) -> Result<(), String> {
        let fields = value.as_object().into_iter().flatten();
        fields.into_iter().try_for_each(|(name, field)| {
            schemas.get(name).map_or(Ok(()), |schema| at(name, self.keeps(schema, field)))
        })
    }
}

/// Finds the patterns in a schema.
fn compile(schema: &Value, patterns: &mut HashMap<String, Regex>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| compile(item, patterns)),
        Value::Object(fields) => {
            if let Some(pattern) = fields.get("pattern").and_then(Value::as_str) {
                patterns.insert(pattern.to_owned(), Regex::new(pattern).unwrap());
            }
            fields.values().for_each(|field| compile(field, patterns));
        }
        _ => {}
    }
}

fn is_a(name: &Value, value: &Value) -> bool {
    match text(name) {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("there is no type {other}"),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn at(place: impl std::fmt::Display, finding: Result<(), String>) -> Result<(), String> {
    finding.map_err(|finding| format!("{place}: {finding}"))
}

/// Short for what may be large.
fn quoted(value: &Value) -> String {
    match value {
        Value::Object(fields) => format!("an object with {:?}", fields.keys().collect::<Vec<_>>()),
        Value::Array(items) => format!("a list of {}", items.len()),
        other => other.to_string().chars().take(QUOTED_CHARS_MAX).collect(),
    }
}
