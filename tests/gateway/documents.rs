//! The wire, written down: the documents are served, hold together, and say what the gateway says. (That each frame and each answer that
//! tests see is as they have it is checked where tests see it.)

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Value, json};
use switchboard::documents::DOCUMENTS;
use switchboard::protocol::{Close, ERROR_CODES, REFUSAL_CODES};

use crate::harness::documents::{check, definition, document, fits};
use crate::harness::raw::Raw;
use crate::harness::{Database, Gateway};

/// Every `$ref` in a document.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| references(field, found));
        }
        _ => {}
    }
}

/// The definitions that a definition is one of.
fn kinds(schema: &Value, of: &str) -> Vec<String> {
    let choices = schema["$defs"][of]["oneOf"].as_array().unwrap();
    choices.iter().map(|choice| choice["$ref"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()).collect()
}

fn examples(schema: &Value, of: &str) -> Vec<Value> {
    schema["$defs"][of]["examples"].as_array().unwrap_or_else(|| panic!("{of} has no example")).clone()
}

/// Texts in order, each once.
fn sorted<'a>(texts: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    let texts: BTreeSet<String> = texts.into_iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    texts.into_iter().collect()
}

#[tokio::test]
async fn the_documents_are_served_as_they_stand_to_pages_of_any_origin() {
    let db = Database::new().await;
    let gateway = Gateway::start(&db).await;

    for (name, media_type) in [
        ("asyncapi.json", "application/vnd.aai.asyncapi+json;version=3.0.0"),
        ("openapi.json", "application/vnd.oai.openapi+json;version=3.1"),
        ("frames.schema.json", "application/schema+json"),
    ] {
        let mut raw = Raw::connect(gateway.address).await;
        let origin = "origin: https://elsewhere.example\r\nconnection: close";
        raw.write(format!("GET /{name} HTTP/1.1\r\nhost: localhost\r\n{origin}\r\n\r\n").as_bytes()).await;
        let head = raw.until_end_of_head().await;
        let body = raw.rest().await;

        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        for line in [format!("content-type: {media_type}"), "access-control-allow-origin: *".to_owned()] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
        }
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), document(name), "{name}");
    }
}

#[test]
fn every_reference_leads_somewhere_here_as_on_the_wire() {
    for from in DOCUMENTS {
        let mut found = BTreeSet::new();
        references(&document(from.name), &mut found);

        for reference in found {
            let (file, pointer) = reference.split_once('#').unwrap();
            let target = document(if file.is_empty() { from.name } else { file });
            assert!(target.pointer(pointer).is_some(), "{}: {reference} leads nowhere", from.name);
        }
    }
}

#[test]
fn the_documents_are_of_this_version() {
    for name in ["asyncapi.json", "openapi.json"] {
        assert_eq!(document(name)["info"]["version"], env!("CARGO_PKG_VERSION"), "docs/{name}");
    }
}

#[test]
fn every_type_and_code_has_an_example_and_every_example_is_valid() {
    let schema = document("frames.schema.json");
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        for example in definition["examples"].as_array().into_iter().flatten() {
            check(name, example);
        }
    }
    for of in ["ServerFrame", "ClientMessage", "Change"] {
        for kind in kinds(&schema, of) {
            examples(&schema, &kind).iter().for_each(|example| check(of, example));
        }
    }

    let errors = examples(&schema, "Error");
    let refusals = examples(&schema, "ErrorBody");
    assert_eq!(sorted(errors.iter().map(|error| &error["code"])), ERROR_CODES);
    assert_eq!(sorted(refusals.iter().map(|refusal| &refusal["error"]["code"])), REFUSAL_CODES);
}

#[test]
fn the_codes_that_are_documented_are_those_that_there_are() {
    let schema = document("frames.schema.json");
    let codes = |of: &str| sorted(schema["$defs"][of]["enum"].as_array().unwrap());
    let mut refusals = codes("RefusalCode");
    // It says more than the others, and has a definition of its own.
    refusals.push("gone".to_owned());
    refusals.sort();

    assert_eq!(codes("ErrorCode"), ERROR_CODES);
    assert_eq!(refusals, REFUSAL_CODES);
    for (of, codes) in [("ErrorCode", codes("ErrorCode")), ("RefusalCode", codes("RefusalCode"))] {
        let said = schema["$defs"][of]["description"].as_str().unwrap();
        codes.iter().for_each(|code| assert!(said.contains(code.as_str()), "{of} does not say what {code} means"));
    }
}

#[test]
fn every_code_in_the_source_is_one_of_those_that_are_documented() {
    let frames = r#"(?:protocol::error|refuse|Message::Wrong)\(\s*"([a-z_]+)"|(?:Err\(|=> )\("([a-z_]+)","#;
    let answers = r#"(?:error|Refusal::new)\(\s*StatusCode::[A-Z_]+,\s*"([a-z_]+)"|unavailable\(\s*"([a-z_]+)""#;
    for (pattern, codes) in [(frames, ERROR_CODES.as_slice()), (answers, &REFUSAL_CODES)] {
        let mut found = BTreeSet::new();
        for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let text = std::fs::read_to_string(&file).unwrap();
            for captures in Regex::new(pattern).unwrap().captures_iter(&text) {
                let code = captures.iter().skip(1).flatten().next().unwrap().as_str().to_owned();
                assert!(codes.contains(&&*code), "{code} in {} is not documented", file.display());
                found.insert(code);
            }
        }
        assert!(found.len() > 5, "what is searched for is not found any more: {found:?}");
    }
}

/// The files of the program.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

#[test]
fn the_close_codes_that_are_documented_are_those_that_there_are() {
    let closes = [
        Close::Normal,
        Close::Stopping,
        Close::ProtocolError,
        Close::NotUtf8,
        Close::Policy,
        Close::MessageTooBig,
        Close::Fault,
        Close::BadRequest,
        Close::NoProgress,
        Close::CursorGone,
    ];

    let document = document("asyncapi.json");
    let documented = document["components"]["x-close-codes"].as_array().unwrap();

    assert_eq!(documented.len(), closes.len());
    for (row, close) in documented.iter().zip(closes) {
        let (code, reason) = close.code_and_reason();
        assert_eq!(row["code"], code);
        // Who said good-bye knows what to do.
        let then = reason.split_once("; ").map_or("stop", |(_, then)| then);
        assert_eq!(row["then"], then, "{code}");
    }
}

#[test]
fn the_sockets_document_has_a_message_for_every_type() {
    let schema = document("frames.schema.json");
    let document = document("asyncapi.json");

    for (operation, of) in [("tell", "ServerFrame"), ("obey", "ClientMessage")] {
        let messages = document["operations"][operation]["messages"].as_array().unwrap();
        let names = messages.iter().map(|message| message["$ref"].as_str().unwrap().rsplit('/').next().unwrap());
        let names: Vec<&str> = names.collect();
        let payloads: Vec<&Value> =
            names.iter().map(|name| &document["components"]["messages"][name]["payload"]["$ref"]).collect();

        assert_eq!(names.iter().map(|name| definition(name)).collect::<Vec<_>>(), kinds(&schema, of));
        for (name, payload) in names.iter().zip(payloads) {
            assert_eq!(*payload, json!(format!("frames.schema.json#/$defs/{}", definition(name))));
        }
    }
}

#[test]
fn a_field_that_is_not_documented_is_noticed_and_so_is_one_that_is_missing() {
    let schema = document("frames.schema.json");
    let mut kinds = [kinds(&schema, "ServerFrame"), kinds(&schema, "Change")].concat();
    kinds.extend(["ChangesPage", "SnapshotBody", "TablesBody", "ErrorBody", "SwitchStatus"].map(str::to_owned));
    for kind in kinds {
        for example in examples(&schema, &kind) {
            let mut more = example.clone();
            more["surprise"] = json!(1);
            let finding = fits(&kind, &more).unwrap_err();
            assert!(finding.contains("surprise"), "{kind}: {finding}");

            for field in schema["$defs"][&kind]["required"].as_array().unwrap() {
                let mut less = example.clone();
                less.as_object_mut().unwrap().remove(field.as_str().unwrap());
                assert!(fits(&kind, &less).is_err(), "{kind} without {field}");
            }
        }
    }

    let commit = &examples(&schema, "Commit")[0];
    let mut inside = commit.clone();
    inside["changes"][0]["surprise"] = json!(1);
    assert!(fits("Commit", &inside).is_err(), "a change with a surprise");
    for (field, wrong) in
        [("cursor", "fqqh.01.dt7k"), ("at", "2026-11-23 23:16:54+00"), ("tx", "-1"), ("type", "comit")]
    {
        let mut other = commit.clone();
        other[field] = json!(wrong);
        assert!(fits("Commit", &other).is_err(), "{field} {wrong}");
    }
}

#[test]
fn messages_hold_only_what_the_gateway_knows() {
    for wrong in [
        json!({"type": "ping", "surprise": 1}),
        json!({"type": "unsubscribe", "id": 1, "surprise": 1}),
        json!({"type": "subscribe", "id": 1, "surprise": 1}),
        json!({"type": "nonsense"}),
        json!({"type": "subscribe"}),
        json!({"type": "subscribe", "id": [1]}),
        json!({"type": "subscribe", "id": "x".repeat(200)}),
        json!({"type": "subscribe", "id": 1, "table": 5}),
        json!({"type": "subscribe", "id": 1, "from": ""}),
        json!({"type": "subscribe", "id": 1, "on_reset": "explode"}),
    ] {
        assert!(fits("ClientMessage", &wrong).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn every_address_that_the_gateway_names_is_documented_and_answers() {
    let db = Database::new().await;
    let gateway = Gateway::start(&db).await;
    let (_, refusal) = gateway.get("/nowhere").await;
    let refusal: Value = serde_json::from_str(&refusal).unwrap();
    let (_, named) = refusal["error"]["message"].as_str().unwrap().split_once("there is / (a page), ").unwrap();

    for address in named.split(", ").chain(["/"]) {
        let documented = address.replace("CHANNEL", "{channel}");
        assert!(document("openapi.json")["paths"].get(&documented).is_some(), "{address} is not documented");
        // That the status is documented too is checked on the way.
        assert_ne!(gateway.get(address).await.0, 404, "{address}");
    }
    for document in DOCUMENTS {
        assert!(named.contains(document.name), "{} is not named in {named}", document.name);
    }
}
