//! `shimmy.toml`: what it may hold, and where it is looked for.
//!
//! A key is an option of the command line without its dashes. Keys at the top are for all commands that have such an
//! option, those in a table for the command that it is named after:
//!
//! ```toml
//! port = 8080
//! threads = 8
//! allow-origin = ["https://chat.example.com"]
//!
//! [generate]
//! temperature = 0
//! ```

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike, Value};

/// In the folder that a command is started in, and in the user's folder for settings.
const NAME: &str = "shimmy.toml";
/// Larger files are no settings.
const MAX_BYTES: u64 = 1 << 20;

/// A file of settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) settings: Vec<Setting>,
}

/// One key of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The table that it is in.
    pub(super) command: Option<String>,
    /// As options are written: with `-`.
    pub(super) key: String,
    /// One, or those of a list.
    pub(super) values: Vec<String>,
    /// From 1.
    pub(super) line: usize,
}

impl ConfigFile {
    /// The file that was named; else the one in this folder, else the user's, if there is one.
    ///
    /// # Errors
    /// When the file that was named isn't there, or any is wrong.
    pub(super) fn find(named: Option<&Path>, env: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, String> {
        if let Some(path) = named {
            // An empty name: none at all.
            return if path.as_os_str().is_empty() { Ok(None) } else { Self::read(path).map(Some) };
        }
        let settings = env("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
        let settings = settings.or_else(|| Some(Path::new(&env("HOME")?).join(".config")));
        let users = settings.map(|folder| folder.join("shimmy").join(NAME));
        let found = std::iter::once(PathBuf::from(NAME)).chain(users).find(|path| path.is_file());
        found.map(|path| Self::read(&path)).transpose()
    }

    fn read(path: &Path) -> Result<Self, String> {
        let wrong = |error: std::io::Error| format!("{}: {error}", path.display());
        let length = fs::metadata(path).map_err(wrong)?.len();
        if length > MAX_BYTES {
            return Err(format!("{}: {length} bytes are too many for settings", path.display()));
        }
        let text = fs::read_to_string(path).map_err(wrong)?;
        let settings = parse(&text).map_err(|(line, error)| format!("{}:{line}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), settings })
    }

    /// Where a setting stands.
    pub(super) fn place(&self, setting: &Setting) -> String {
        format!("{}:{}", self.path.display(), setting.line)
    }
}

/// Settings in the order of the file; an error with its line.
fn parse(text: &str) -> Result<Vec<Setting>, (usize, String)> {
    let line_at =
        |offset: usize| text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    let document = Document::parse(text)
        .map_err(|error| (error.span().map_or(1, |span| line_at(span.start)), error.message().to_owned()))?;
    let mut settings = Vec::new();
    read_table(document.as_table(), None, &line_at, &mut settings)?;
    settings.sort_by_key(|setting| setting.line);
    Ok(settings)
}

fn read_table(
    table: &dyn TableLike,
    command: Option<&str>,
    line_at: &impl Fn(usize) -> usize,
    settings: &mut Vec<Setting>,
) -> Result<(), (usize, String)> {
    for (key, item) in table.iter() {
        let span = table.get_key_value(key).and_then(|(key, _)| key.span()).or_else(|| item.span());
        let line = span.map_or(1, |span| line_at(span.start));
        let wrong = |what: &str| (line, format!("`{key}` {what}"));
        if let (Item::Table(inner), None) = (item, command) {
            read_table(inner, Some(key), line_at, settings)?;
            continue;
        }
        let value = item.as_value().ok_or_else(|| wrong("is a table in a table; there is one for each command"))?;
        let values = match value {
            Value::Array(array) => array.iter().map(scalar).collect::<Option<Vec<_>>>(),
            value => scalar(value).map(|value| vec![value]),
        };
        let values = values.ok_or_else(|| wrong("must be a text, a number, true or false, or a list of them"))?;
        let command = command.map(str::to_owned);
        settings.push(Setting { command, key: key.replace('_', "-"), values, line });
    }
    Ok(())
}

fn scalar(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) => text.value().clone(),
        Value::Integer(number) => number.value().to_string(),
        Value::Float(number) => number.value().to_string(),
        Value::Boolean(is_true) => is_true.value().to_string(),
        Value::Datetime(_) | Value::Array(_) | Value::InlineTable(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_values_and_lines() {
        let settings =
            parse("# ours\nport = 80\nkv_memory = \"2GiB\"\n\n[chat]\nstop = [\"a\", \"b\"]\ntop_p = 0.5\n").unwrap();
        let of = |command: Option<&str>, key: &str, values: &[&str], line| Setting {
            command: command.map(str::to_owned),
            key: key.into(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
            line,
        };
        assert_eq!(
            settings,
            [
                of(None, "port", &["80"], 2),
                of(None, "kv-memory", &["2GiB"], 3),
                of(Some("chat"), "stop", &["a", "b"], 6),
                of(Some("chat"), "top-p", &["0.5"], 7),
            ]
        );
    }

    #[test]
    fn mistakes_have_lines_too() {
        for (text, line, what) in [
            ("a = 1\nb =\n", 2, ""),
            ("a = 1\na = 2\n", 2, "duplicate"),
            ("\na = {b = 1}\n", 2, "must be a text"),
            ("a = 1979-05-27\n", 1, "must be a text"),
            ("[a]\n[a.b]\nc = 1\n", 2, "a table in a table"),
            ("a = [[1]]\n", 1, "must be a text"),
        ] {
            let (found, error) = parse(text).unwrap_err();
            assert!(found == line && error.contains(what), "{text:?}: {found} {error}");
        }
    }

    #[test]
    fn the_users_file_is_found_and_can_be_switched_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shimmy").join(NAME);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, "port = 80\n").unwrap();
        let env = |name: &str| (name == "XDG_CONFIG_HOME").then(|| folder.path().as_os_str().to_owned());
        assert_eq!(ConfigFile::find(None, env).unwrap().unwrap().path, path);
        assert_eq!(ConfigFile::find(Some(Path::new("")), env).unwrap(), None);
        assert_eq!(ConfigFile::find(None, |_| None).unwrap(), None);
        let missing = folder.path().join("missing.toml");
        assert!(ConfigFile::find(Some(&missing), env).unwrap_err().contains("missing.toml"));
    }
}
