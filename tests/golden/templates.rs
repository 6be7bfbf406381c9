//! Chat templates against what Jinja2 makes of them in the set-up of Hugging Face transformers.

use std::collections::BTreeMap;

use serde_json::Value;
use shimmy_runtime::Error;
use shimmy_runtime::text::ChatTemplate;

use crate::support::goldens;

#[test]
fn templates() {
    let Some(goldens) = goldens() else { return };
    let folder = goldens.join("templates");
    let cases: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let now = cases["now"].as_str().unwrap();
    let mut sources: BTreeMap<String, Result<ChatTemplate, String>> = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            let source = std::fs::read_to_string(&path).unwrap();
            let template = ChatTemplate::from_source(source, "", "").and_then(|template| template.at_time(now));
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            sources.insert(name, template.map_err(|error| error.to_string()));
        }
    }
    let mut mismatches = Vec::new();
    let cases = cases["cases"].as_array().unwrap();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = sources.get(name).unwrap_or_else(|| panic!("{name} is not in the goldens"));
        let result = match template {
            Ok(template) => template.render_context(case["context"].as_object().unwrap()),
            Err(error) => Err(Error::Template(error.clone())),
        };
        let fault = if let Some(expected) = case["rendered"].as_str() {
            match result {
                Ok(text) if text == expected => None,
                Ok(text) => Some(difference(expected, &text)),
                Err(error) => Some(error.to_string()),
            }
        } else if let Some(expected) = case["raises"].as_str() {
            match result {
                Err(Error::Template(message)) if message == expected => None,
                other => Some(format!("expected the message {expected:?}, got {other:?}")),
            }
        } else {
            // Jinja2 itself failed here: any text and any error will do, a panic would not.
            assert!(case["fails"].is_string(), "{name}: a case without an expectation");
            None
        };
        if let Some(fault) = fault {
            mismatches.push(format!("{name}, {}: {fault}", case["case"].as_str().unwrap()));
        }
    }
    assert!(mismatches.is_empty(), "{} of {} cases:\n{}", mismatches.len(), cases.len(), mismatches.join("\n"));
    assert!(!cases.is_empty());
}

/// Where two texts part, with what surrounds it.
fn difference(expected: &str, got: &str) -> String {
    let same = expected.char_indices().zip(got.chars()).find(|((_, a), b)| a != b).map(|((at, _), _)| at);
    let at = same.unwrap_or(expected.len().min(got.len()));
    let around = |text: &str| -> String {
        let before: Vec<char> = text.get(..at).unwrap_or_default().chars().rev().take(60).collect();
        before.into_iter().rev().chain(text.get(at..).unwrap_or_default().chars().take(60)).collect()
    };
    format!("at byte {at}\n  expected {:?}\n  got      {:?}", around(expected), around(got))
}
