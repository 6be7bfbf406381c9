//! Model names: file stem, lower case, `_` and space become `-`.

use std::path::Path;

/// One part of a split file: `<stem>-00001-of-00005.gguf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard<'a> {
    /// What all parts share.
    pub stem: &'a str,
    /// From 1.
    pub index: u32,
    /// Parts of the model.
    pub count: u32,
}

/// Reads the `-00001-of-00005` at the end of a file stem.
pub fn shard(stem: &str) -> Option<Shard<'_>> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (stem, index) = rest.rsplit_once('-')?;
    let number = |text: &str| -> Option<u32> {
        (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
    };
    let (index, count) = (number(index)?, number(count)?);
    (!stem.is_empty() && index >= 1 && index <= count).then_some(Shard { stem, index, count })
}

/// Cuts `.gguf` or `.safetensors` off a file name, in any case. Not `Path::file_stem`: names hold dots (`qwen2.5-0.5b`).
pub fn stem(file_name: &str) -> &str {
    for extension in [".gguf", ".safetensors"] {
        if let Some(at) = file_name.len().checked_sub(extension.len())
            && file_name.is_char_boundary(at)
            && file_name[at..].eq_ignore_ascii_case(extension)
            && at > 0
        {
            return &file_name[..at];
        }
    }
    file_name
}

/// The name as clients write it. Applied to what is on disk and to what is asked for, so that both meet.
pub fn normalise(raw: &str) -> String {
    let stem = stem(raw.trim());
    let stem = shard(stem).map_or(stem, |shard| shard.stem);
    stem.chars().map(|c| if c == '_' || c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
}

/// The name of the model at `path`: a GGUF file, a `.safetensors` file or a folder with `config.json`.
pub fn from_path(path: &Path) -> String {
    // `.` and `..` have no name of their own.
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let full = if full.file_name().is_none() { full.canonicalize().unwrap_or(full) } else { full };
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let Some(file) = last(&full) else { return "model".into() };
    // A Hugging Face snapshot folder is called after a commit; the model's name is two levels up.
    if let Some(repo) = hub_repo(&full) {
        let of_repo = repo.rsplit('/').next().unwrap_or(&repo).to_owned();
        if full.is_dir() || is_generic(&file) {
            return normalise(&of_repo);
        }
    }
    if full.is_file()
        && is_generic(&file)
        && let Some(parent) = full.parent().and_then(last)
    {
        return normalise(&parent);
    }
    normalise(&file)
}

/// File names that say nothing about the model (what `save_pretrained` writes).
fn is_generic(file_name: &str) -> bool {
    let stem = stem(file_name);
    let stem = shard(stem).map_or(stem, |shard| shard.stem);
    file_name.to_ascii_lowercase().ends_with(".safetensors") && stem.eq_ignore_ascii_case("model")
}

/// `org/name` of a path inside a Hugging Face cache (`…/models--org--name/snapshots/<commit>/…`).
pub fn hub_repo(path: &Path) -> Option<String> {
    let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy());
    let repo = parts.find_map(|part| part.strip_prefix("models--").map(|repo| repo.replace("--", "/")))?;
    (parts.next()? == "snapshots").then_some(repo)
}

/// Up to `limit` of `known` that are most like `wanted`, best first; the far-off ones are left out.
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>, limit: usize) -> Vec<String> {
    let wanted: Vec<char> = normalise(wanted).chars().collect();
    let mut ranked: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|name| {
            let chars: Vec<char> = name.chars().collect();
            let shorter = wanted.len().min(chars.len());
            let distance = edit_distance(&wanted, &chars);
            // A part of a name (`smollm2` of `smollm2-135m-instruct-q4-1`) is near however much is missing.
            let contained = shorter >= 3 && (contains(&chars, &wanted) || contains(&wanted, &chars));
            let rank = if contained { distance / 4 } else { distance };
            (contained || distance <= 2 + wanted.len().max(chars.len()) / 3).then_some((rank, name))
        })
        .collect();
    ranked.sort();
    ranked.dedup_by(|a, b| a.1 == b.1);
    ranked.into_iter().take(limit).map(|(_, name)| name.to_owned()).collect()
}

fn contains(haystack: &[char], needle: &[char]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|window| window == needle)
}

/// Levenshtein distance; two rows of the table.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_stem_in_lower_case_with_dashes() {
        assert_eq!(normalise("SmolLM2-135M-Instruct-Q4_1.gguf"), "smollm2-135m-instruct-q4-1");
        assert_eq!(normalise("My Model.GGUF"), "my-model");
        assert_eq!(normalise("Qwen2.5-0.5B"), "qwen2.5-0.5b");
        assert_eq!(normalise("big-00001-of-00003.gguf"), "big");
        assert_eq!(normalise("llama3.2:1b"), "llama3.2:1b");
        assert_eq!(normalise(".gguf"), ".gguf");
    }

    #[test]
    fn only_real_shard_suffixes_count() {
        assert_eq!(shard("m-00002-of-00005"), Some(Shard { stem: "m", index: 2, count: 5 }));
        for not in ["m-2-of-5", "m-00000-of-00005", "m-00006-of-00005", "-00001-of-00005", "m-0000a-of-00005", "m"] {
            assert_eq!(shard(not), None, "{not}");
        }
    }

    #[test]
    fn a_snapshot_is_called_after_its_repository() {
        let path = Path::new("/c/hub/models--Org--Some-Model/snapshots/abc123/sub/f.gguf");
        assert_eq!(hub_repo(path).as_deref(), Some("Org/Some-Model"));
        assert_eq!(hub_repo(Path::new("/c/models--a--b/blobs/x")), None);
        assert_eq!(hub_repo(Path::new("/c/models/x.gguf")), None);
    }

    #[test]
    fn nearest_names_come_best_first() {
        let known = ["smollm2-135m-instruct-q4-1", "gemma-3-270m-it-q8-0", "llama3.2:1b"];
        assert_eq!(nearest("smollm2", known, 3), ["smollm2-135m-instruct-q4-1"]);
        assert_eq!(nearest("llama3.2:3b", known, 3), ["llama3.2:1b"]);
        assert_eq!(nearest("Gemma-3-270m-it-q8_1", known, 3), ["gemma-3-270m-it-q8-0"]);
        assert!(nearest("gpt-4o", known, 3).is_empty());
    }

    #[test]
    fn edit_distance_is_a_metric_on_small_words() {
        let distance = |a: &str, b: &str| edit_distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
