//! How a model's makers turn its hidden states into an embedding.

use serde_json::Value;

use crate::engine::Pooling;
use crate::error::{Error, Result};
use crate::loader::{GgufMetadata, HfMetadata, Metadata};

/// What a model's file says of embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPooling {
    /// Nothing: it was made for answers. [`Pooling::Mean`] is taken.
    Unsaid,
    /// This.
    Known(Pooling),
    /// Something that isn't supported, by its name.
    Other(&'static str),
}

impl ModelPooling {
    /// `<architecture>.pooling_type` of a GGUF file; `modules.json` and `1_Pooling/config.json` of a folder, as
    /// sentence-transformers writes them.
    ///
    /// # Errors
    /// When they are there and can't be read.
    pub fn of(metadata: &Metadata) -> Result<Self> {
        match metadata {
            Metadata::Gguf(metadata) => Self::of_gguf(metadata),
            Metadata::Hf(metadata) => Self::of_folder(metadata),
        }
    }

    /// The numbers are llama.cpp's.
    fn of_gguf(metadata: &GgufMetadata) -> Result<Self> {
        let Some(key) = metadata.keys().find(|key| key.ends_with(".pooling_type")).map(str::to_owned) else {
            return Ok(Self::Unsaid);
        };
        match metadata.usize(&key)? {
            None | Some(0) => Ok(Self::Unsaid),
            Some(1) => Ok(Self::Known(Pooling::Mean)),
            Some(2) => Ok(Self::Other("cls")),
            Some(3) => Ok(Self::Known(Pooling::Last)),
            Some(4) => Ok(Self::Other("rank")),
            Some(other) => {
                Err(Error::BadMetadata { key, expected: "a pooling type, 0 to 4".into(), got: other.to_string() })
            }
        }
    }

    fn of_folder(metadata: &HfMetadata) -> Result<Self> {
        let modules = metadata.read_side_file("modules.json")?;
        let types = modules.iter().filter_map(Value::as_array).flatten().filter_map(|module| module["type"].as_str());
        if types.into_iter().any(|kind| kind.ends_with(".Dense")) {
            return Ok(Self::Other("dense layers after pooling"));
        }
        Ok(metadata.read_side_file("1_Pooling/config.json")?.as_ref().map_or(Self::Unsaid, Self::of_config))
    }

    /// Several modes at once are concatenated.
    fn of_config(config: &Value) -> Self {
        let named = config["pooling_mode"].as_str().map(|mode| format!("pooling_mode_{mode}"));
        let modes: Vec<String> = match (named, config.as_object()) {
            (Some(mode), _) => vec![mode],
            (None, Some(config)) => {
                let on =
                    config.iter().filter(|(key, on)| key.starts_with("pooling_mode_") && **on == Value::Bool(true));
                on.map(|(key, _)| key.clone()).collect()
            }
            (None, None) => Vec::new(),
        };
        let [mode] = modes.as_slice() else {
            return if modes.is_empty() { Self::Unsaid } else { Self::Other("several kinds at once") };
        };
        match mode.trim_start_matches("pooling_mode_") {
            // A mean that is divided by something else has the same direction.
            "mean" | "mean_tokens" | "mean_sqrt_len_tokens" => Self::Known(Pooling::Mean),
            "lasttoken" => Self::Known(Pooling::Last),
            "cls" | "cls_token" => Self::Other("cls"),
            "max" | "max_tokens" => Self::Other("max"),
            "weightedmean" | "weightedmean_tokens" => Self::Other("weightedmean"),
            _ => Self::Other("one that is unknown"),
        }
    }

    /// What is done for a request that asks for this, or for nothing.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] on `pooling` when the request must choose.
    pub fn choose(self, asked: Option<Pooling>) -> Result<Pooling> {
        match (asked, self) {
            (Some(pooling), _) | (None, Self::Known(pooling)) => Ok(pooling),
            (None, Self::Unsaid) => Ok(Pooling::Mean),
            (None, Self::Other(name)) => {
                let message = format!(
                    "this model's embeddings are made by a pooling that isn't supported ({name}); \
                     ask for \"mean\" or \"last\" if that will do"
                );
                Err(Error::InvalidRequest { param: "pooling", message })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(files: &[(&str, Value)]) -> Result<ModelPooling> {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        }
        ModelPooling::of(&Metadata::Hf(HfMetadata { folder: folder.path().into(), ..HfMetadata::default() }))
    }

    #[test]
    fn a_folder_says_it_in_the_words_of_sentence_transformers() {
        let known = |value: Value| folder(&[("1_Pooling/config.json", value)]).unwrap();
        assert_eq!(folder(&[]).unwrap(), ModelPooling::Unsaid);
        assert_eq!(known(json!({"pooling_mode_mean_tokens": false})), ModelPooling::Unsaid);
        let both = |cls, mean, last| {
            known(json!({"word_embedding_dimension": 9, "pooling_mode_cls_token": cls,
                "pooling_mode_mean_tokens": mean, "pooling_mode_lasttoken": last}))
        };
        assert_eq!(both(false, true, false), ModelPooling::Known(Pooling::Mean));
        assert_eq!(both(false, false, true), ModelPooling::Known(Pooling::Last));
        assert_eq!(both(true, false, false), ModelPooling::Other("cls"));
        assert_eq!(both(true, true, false), ModelPooling::Other("several kinds at once"));
        assert_eq!(known(json!({"pooling_mode": "lasttoken"})), ModelPooling::Known(Pooling::Last));
        let modules = json!([{"type": "sentence_transformers.models.Pooling"},
            {"type": "sentence_transformers.models.Dense"}]);
        let dense = folder(&[("modules.json", modules), ("1_Pooling/config.json", json!({"pooling_mode": "mean"}))]);
        assert_eq!(dense.unwrap(), ModelPooling::Other("dense layers after pooling"));
        assert!(folder(&[("modules.json", json!("x"))]).is_ok_and(|pooling| pooling == ModelPooling::Unsaid));
    }

    #[test]
    fn a_request_has_the_last_word() {
        assert_eq!(ModelPooling::Known(Pooling::Last).choose(None).unwrap(), Pooling::Last);
        assert_eq!(ModelPooling::Known(Pooling::Last).choose(Some(Pooling::Mean)).unwrap(), Pooling::Mean);
        assert_eq!(ModelPooling::Unsaid.choose(None).unwrap(), Pooling::Mean);
        assert_eq!(ModelPooling::Other("cls").choose(Some(Pooling::Last)).unwrap(), Pooling::Last);
        let error = ModelPooling::Other("cls").choose(None).unwrap_err();
        assert!(matches!(&error, Error::InvalidRequest { param: "pooling", message } if message.contains("cls")));
    }
}
