//! API keys: made here, shown once, and kept as hashes.
//!
//! A key is 256 random bits, so a fast hash keeps it as safe as a slow one: nobody can try them all. The key file is TOML:
//!
//! ```toml
//! [[key]]
//! name = "ann"
//! hash = "blake3:0123…"        # 64 hex digits
//! requests_per_minute = 60     # both may be missing: then those of the command line, if any
//! tokens_per_minute = 20000
//! least_priority = -10         # its requests may go before those of others; 0 if it is missing
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use serde::Deserialize;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::quota::{Quota, Rates};

/// How made keys begin, so that people and scanners of leaked secrets know them.
const PREFIX: &str = "sk-shimmy-";
const HASH_PREFIX: &str = "blake3:";
/// Larger files are no key files.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A key as it is compared: its hash. It can't be turned back, and it is compared in constant time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secret(blake3::Hash);

impl Secret {
    /// Of a key.
    pub fn of(key: impl AsRef<[u8]>) -> Self {
        Self(blake3::hash(key.as_ref()))
    }

    /// As the key file has it.
    pub fn to_text(self) -> String {
        format!("{HASH_PREFIX}{}", self.0.to_hex())
    }

    fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text.strip_prefix(HASH_PREFIX)?).ok().map(Self)
    }

    /// A number that tells clients apart.
    pub fn number(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// A new key.
///
/// # Errors
/// When the system has no random numbers.
pub fn generate() -> io::Result<String> {
    let mut bits = [0u8; 32];
    getrandom::fill(&mut bits).map_err(|error| io::Error::other(format!("no random numbers: {error}")))?;
    let hex: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{PREFIX}{hex}"))
}

/// Which key it is, for as long as the server runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyId {
    /// The one in this place of the command line. A key of the file may have the same name in logs.
    Given(usize),
    /// The one of this name in the file, whose secret may have been replaced.
    Named(Arc<str>),
}

/// Somebody's key.
#[derive(Debug)]
pub struct Key {
    /// Which one it is.
    pub id: KeyId,
    /// For logs.
    pub name: String,
    /// What it is compared with.
    pub secret: Secret,
    /// Its limits, as they were when it was read.
    pub rates: Rates,
    /// Least `priority` of its requests, if it has a bound of its own.
    pub least_priority: Option<i32>,
    /// Its buckets, if it has limits.
    pub quota: Option<Arc<Quota>>,
}

/// An entry of a key file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// For people and logs; no two have the same.
    pub name: String,
    hash: String,
    /// At most so much a minute.
    #[serde(default)]
    requests_per_minute: Option<std::num::NonZeroU32>,
    #[serde(default)]
    tokens_per_minute: Option<std::num::NonZeroU32>,
    /// Least `priority` of its requests.
    #[serde(default)]
    pub least_priority: Option<i32>,
}

impl Entry {
    /// Its limits.
    pub fn rates(&self) -> Rates {
        Rates { requests_per_minute: self.requests_per_minute, tokens_per_minute: self.tokens_per_minute }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

/// Reads a key file.
///
/// # Errors
/// What is wrong with it, and where. The message holds nothing of a hash.
pub fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let wrong = |error: String| format!("{}: {error}", path.display());
    let length = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if length > MAX_FILE_BYTES {
        return Err(wrong(format!("{length} bytes are too many for a key file")));
    }
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    parse(&text).map_err(wrong)
}

fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let file: File = toml_edit::de::from_str(text).map_err(|error| error.message().to_owned())?;
    let mut names = std::collections::HashSet::new();
    for entry in &file.key {
        let name = &entry.name;
        check_name(name)?;
        if !names.insert(name.as_str()) {
            return Err(format!("two keys are called `{name}`"));
        }
        if Secret::parse(&entry.hash).is_none() {
            let form = "`blake3:` and 64 hex digits; `shimmy key new` makes one";
            return Err(format!("the hash of `{name}` must be {form}"));
        }
    }
    Ok(file.key)
}

/// Names are for logs and for lists: visible ASCII, and not long.
fn check_name(name: &str) -> Result<(), String> {
    let is_good = (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    is_good.then_some(()).ok_or_else(|| {
        format!("a key's name must be 1 to 64 letters, digits or signs without spaces, got {}", name.escape_debug())
    })
}

/// Adds a key to a file, which is made if it isn't there, readable for its owner only.
///
/// # Errors
/// When the name is taken, the file is wrong or can't be written.
pub fn add(path: &Path, name: &str, key: &str, rates: Rates, least_priority: Option<i32>) -> Result<(), String> {
    check_name(name)?;
    let text = if path.exists() { text_of(path)? } else { String::new() };
    if parse(&text).map_err(|error| format!("{}: {error}", path.display()))?.iter().any(|entry| entry.name == name) {
        return Err(format!("there is a key `{name}` already; `shimmy key remove {name}` takes it away"));
    }
    let mut document: DocumentMut = text.parse().map_err(|error| format!("{}: {error}", path.display()))?;
    let mut table = Table::new();
    table["name"] = value(name);
    table["hash"] = value(Secret::of(key).to_text());
    if let Some(requests) = rates.requests_per_minute {
        table["requests_per_minute"] = value(i64::from(requests.get()));
    }
    if let Some(tokens) = rates.tokens_per_minute {
        table["tokens_per_minute"] = value(i64::from(tokens.get()));
    }
    if let Some(least) = least_priority {
        table["least_priority"] = value(i64::from(least));
    }
    let keys = document.entry("key").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let keys = keys.as_array_of_tables_mut().ok_or("`key` isn't a list of tables: write [[key]]")?;
    keys.push(table);
    write(path, &document.to_string())
}

/// Takes a key out of a file.
///
/// # Errors
/// When there is none of this name, or the file can't be read or written.
pub fn remove(path: &Path, name: &str) -> Result<(), String> {
    let names: Vec<String> = read(path)?.into_iter().map(|entry| entry.name).collect();
    let Some(index) = names.iter().position(|found| found == name) else {
        return Err(format!("{} has no key `{name}`; it has {}", path.display(), names.join(", ")));
    };
    let mut document: DocumentMut = text_of(path)?.parse().map_err(|error| format!("{}: {error}", path.display()))?;
    let keys = document.get_mut("key").and_then(Item::as_array_of_tables_mut);
    keys.ok_or("`key` isn't a list of tables: write [[key]]")?.remove(index);
    write(path, &document.to_string())
}

fn text_of(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// A reader finds the old file or the new one, never half of one.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error: io::Error| {
        // What is left of it has no use; that it can't be removed is no news.
        let _ = fs::remove_file(&new);
        format!("{}: {error}", path.display())
    })
}

/// All keys that are accepted now.
#[derive(Debug, Default)]
pub struct KeyRing {
    /// From the command line.
    fixed: Vec<Arc<Key>>,
    file: Option<KeyFile>,
    /// Limits of keys that name none.
    rates: Rates,
}

#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
    read: RwLock<Read>,
}

#[derive(Debug)]
struct Read {
    keys: Vec<Arc<Key>>,
    modified: Option<SystemTime>,
}

impl KeyRing {
    /// Keys of the command line (or the environment), and those of a file.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn new(given: &[String], file: Option<PathBuf>, rates: Rates) -> Result<Self, String> {
        let fixed = given.iter().enumerate().map(|(index, key)| {
            let quota = Quota::new(rates).map(Arc::new);
            let (id, name) = (KeyId::Given(index), format!("key-{}", index + 1));
            Arc::new(Key { id, name, secret: Secret::of(key), rates, least_priority: None, quota })
        });
        let mut ring = Self { fixed: fixed.collect(), file: None, rates };
        if let Some(path) = file {
            let modified = modified(&path);
            let keys = ring.keys_of(read(&path)?, &[]);
            ring.file = Some(KeyFile { path, read: RwLock::new(Read { keys, modified }) });
        }
        Ok(ring)
    }

    /// Whether a request needs a key. An empty key file lets nobody in.
    pub fn is_required(&self) -> bool {
        !self.fixed.is_empty() || self.file.is_some()
    }

    /// The key with this secret. All are compared, each in constant time, so that the time tells nothing about them.
    pub fn find(&self, secret: &Secret) -> Option<Arc<Key>> {
        let of_file = self.file.as_ref().map(|file| file.read.read().unwrap_or_else(PoisonError::into_inner));
        let all = self.fixed.iter().chain(of_file.iter().flat_map(|read| &read.keys));
        all.fold(None, |found, key| if key.secret == *secret { Some(Arc::clone(key)) } else { found })
    }

    /// Reads the file again if it has changed. One that is wrong changes nothing but the log. Blocks.
    pub fn reload(&self) {
        let Some(file) = &self.file else { return };
        let modified = modified(&file.path);
        let old = {
            let read = file.read.read().unwrap_or_else(PoisonError::into_inner);
            if read.modified == modified {
                return;
            }
            read.keys.clone()
        };
        let keys = match read(&file.path) {
            Ok(entries) => {
                tracing::info!("{}: {} keys", file.path.display(), entries.len());
                self.keys_of(entries, &old)
            }
            Err(error) => {
                tracing::error!("the keys stay as they were: {error}");
                old
            }
        };
        *file.read.write().unwrap_or_else(PoisonError::into_inner) = Read { keys, modified };
    }

    /// Entries as keys. One that was there before, with the same limits, keeps what it has taken.
    fn keys_of(&self, entries: Vec<Entry>, old: &[Arc<Key>]) -> Vec<Arc<Key>> {
        let old: HashMap<&str, &Arc<Key>> = old.iter().map(|key| (key.name.as_str(), key)).collect();
        let key = |entry: Entry| {
            let secret = Secret::parse(&entry.hash)?;
            let rates = entry.rates().or(self.rates);
            let quota = match old.get(entry.name.as_str()) {
                Some(before) if before.rates == rates => before.quota.clone(),
                _ => Quota::new(rates).map(Arc::new),
            };
            let id = KeyId::Named(entry.name.as_str().into());
            let least_priority = entry.least_priority;
            Some(Arc::new(Key { id, name: entry.name, secret, rates, least_priority, quota }))
        };
        entries.into_iter().filter_map(key).collect()
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;

    fn rates(requests: u32) -> Rates {
        Rates { requests_per_minute: NonZeroU32::new(requests), tokens_per_minute: None }
    }

    #[test]
    fn a_file_holds_hashes_and_keeps_its_comments() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let (ann, bob) = (generate().unwrap(), generate().unwrap());
        assert!(ann.starts_with("sk-shimmy-") && ann.len() == 74 && ann != bob, "{ann}");
        add(&path, "ann", &ann, rates(60), Some(-5)).unwrap();
        fs::write(&path, format!("# ours\n{}", fs::read_to_string(&path).unwrap())).unwrap();
        add(&path, "bob", &bob, Rates::default(), None).unwrap();
        assert!(add(&path, "bob", &bob, Rates::default(), None).unwrap_err().contains("already"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# ours\n") && text.contains("requests_per_minute = 60"), "{text}");
        assert!(text.contains("least_priority = -5"), "{text}");
        assert!(!text.contains(&ann[10..]) && !text.contains(&bob[10..]), "{text}");
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777, 0o600);

        let ring = KeyRing::new(&["mine".into()], Some(path.clone()), Rates::default()).unwrap();
        let name = |key: &str| ring.find(&Secret::of(key)).map(|key| key.name.clone());
        assert_eq!(name(&ann).as_deref(), Some("ann"));
        assert_eq!(name("mine").as_deref(), Some("key-1"));
        assert_eq!(name(&ann[..73]), None);

        assert!(remove(&path, "eve").unwrap_err().contains("ann, bob"));
        remove(&path, "ann").unwrap();
        // A file system may count whole seconds only.
        let later = SystemTime::now() + Duration::from_secs(5);
        fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        ring.reload();
        assert_eq!((name(&ann), name(&bob).as_deref()), (None, Some("bob")));
    }

    #[test]
    fn a_changed_file_keeps_what_its_keys_have_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let changed = |text: &str, seconds: u64| {
            fs::write(&path, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        };
        let entry = |name: &str, requests: u32| {
            let hash = Secret::of(name).to_text();
            format!("[[key]]\nname = \"{name}\"\nhash = \"{hash}\"\nrequests_per_minute = {requests}\n")
        };
        changed(&entry("ann", 1), 1000);
        let ring = KeyRing::new(&[], Some(path.clone()), Rates::default()).unwrap();
        let admit = |name: &str| ring.find(&Secret::of(name)).unwrap().quota.as_ref().unwrap().admit().is_ok();
        assert!(admit("ann") && !admit("ann"));
        changed(&(entry("ann", 1) + &entry("bob", 5)), 2000);
        ring.reload();
        assert!(!admit("ann") && admit("bob"));
        changed("[[key]]\nname = 5", 3000);
        ring.reload();
        assert!(admit("bob"), "a wrong file changes nothing");
        changed("", 4000);
        ring.reload();
        assert!(ring.find(&Secret::of("bob")).is_none() && ring.is_required(), "an empty file lets nobody in");
    }

    #[test]
    fn wrong_files_are_refused_with_the_reason() {
        for (text, reason) in [
            ("[[key]]\nname = \"a\"\n", "hash"),
            ("[[key]]\nname = \"a\"\nhash = \"md5:00\"", "blake3"),
            ("[[key]]\nname = \"a\"\nhash = \"blake3:00\"", "64 hex"),
            ("[[key]]\nname = \"a b\"\nhash = \"blake3:00\"", "spaces"),
            ("[[key]]\nname = \"a\"\nhash = \"x\"\nlimit = 5", "limit"),
            ("keys = 5", "keys"),
            ("[[key", ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let hash = Secret::of("a").to_text();
        let twice = format!("[[key]]\nname = \"a\"\nhash = \"{hash}\"\n").repeat(2);
        assert!(parse(&twice).unwrap_err().contains("two keys"));
        let zero = format!("[[key]]\nname = \"a\"\nhash = \"{hash}\"\nrequests_per_minute = 0");
        assert!(parse(&zero).is_err());
    }
}
