//! What a model's file says of itself. Opening a file takes milliseconds, and a list may have hundreds of models, so what
//! was read is kept until the file changes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Value, json};
use shimmy_runtime::arch::load;
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::models::{Discovered, Summary};
use shimmy_runtime::plan::OutputKind;

/// What a file said.
#[derive(Debug, Clone)]
struct Known {
    /// When it was changed before that.
    modified: Option<SystemTime>,
    /// `None`: it can't be read.
    summary: Option<Summary>,
    /// Whether this build knows its architecture and everything that it asks for.
    runs: bool,
}

/// Summaries of the files that were asked for.
#[derive(Debug, Default)]
pub struct Summaries {
    known: Mutex<HashMap<PathBuf, Known>>,
}

impl Summaries {
    /// Of this model; `None` if its file can't be read.
    pub fn of(&self, model: &Discovered) -> Option<Summary> {
        self.known_of(model).summary
    }

    /// What this model can be asked for: nothing if it can't be loaded, and `chat` only if its file brings a template.
    pub fn capabilities(&self, model: &Discovered) -> Vec<&'static str> {
        let known = self.known_of(model);
        let can_chat = known.summary.is_some_and(|summary| summary.chat_template);
        [("completion", known.runs), ("chat", known.runs && can_chat), ("embeddings", known.runs)]
            .into_iter()
            .filter_map(|(name, is_there)| is_there.then_some(name))
            .collect()
    }

    /// The same in Ollama's words. Its other ones (`tools`, `insert`, `vision`, `thinking`) are for what no model is asked for
    /// here: such requests are refused, whatever the model's template knows.
    pub fn ollama_capabilities(&self, model: &Discovered) -> Vec<&'static str> {
        if self.known_of(model).runs { vec!["completion", "embedding"] } else { Vec::new() }
    }

    fn known_of(&self, model: &Discovered) -> Known {
        let all = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all().get(&model.path)
            && known.modified == model.modified
        {
            return known.clone();
        }
        let file = ModelFile::open(&model.path).ok();
        let known = Known {
            modified: model.modified,
            summary: file.as_ref().and_then(|file| Summary::of(file).ok()),
            runs: file.is_some_and(|file| load(&file, OutputKind::Logits).is_ok()),
        };
        all().insert(model.path.clone(), known.clone());
        known
    }
}

/// `details` of a model.
pub fn details(summary: Option<&Summary>) -> Value {
    let family = summary.and_then(|summary| summary.architecture.clone()).unwrap_or_default();
    json!({
        "parent_model": "",
        "format": summary.map_or("", |summary| summary.format),
        "family": family,
        "families": if family.is_empty() { json!([]) } else { json!([family]) },
        "parameter_size": summary.map(|summary| parameter_size(summary.parameters)).unwrap_or_default(),
        "quantization_level": summary.and_then(|summary| summary.dtype.clone()).unwrap_or_default().to_uppercase(),
    })
}

/// A count of parameters as people write it: `134.52M`, `8.0B`.
pub fn parameter_size(parameters: u64) -> String {
    let count = parameters as f64;
    match count {
        1e12.. => format!("{:.1}T", count / 1e12),
        1e9.. => format!("{:.1}B", count / 1e9),
        1e6.. => format!("{:.2}M", count / 1e6),
        1e3.. => format!("{:.2}K", count / 1e3),
        _ => format!("{parameters}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_as_people_write_them() {
        let sizes = [999, 4_096, 134_515_008, 8_030_261_248].map(super::parameter_size);
        assert_eq!(sizes, ["999", "4.10K", "134.52M", "8.0B"]);
    }
}
