//! Finds models where they usually lie: plain folders, the Hugging Face cache, Ollama's store, LM Studio's folder.
//!
//! Only names and sizes are read here, no file is opened but Ollama's manifests. Nothing is left out by its name; a
//! file that turns out not to be a model says so when it is opened. The layout of a folder is recognised by what it
//! holds, so any root may be any of them.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::models::names;

/// Folders below a root that are looked into.
const MAX_DEPTH: usize = 8;
/// Directory entries of one scan, so that a root such as `/` ends.
const MAX_ENTRIES: usize = 200_000;

/// What kind of place a model was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A GGUF file or a safetensors folder somewhere.
    File,
    /// A snapshot in the Hugging Face cache.
    HuggingFace,
    /// A blob that an Ollama manifest names.
    Ollama,
}

/// A model on disk, found but not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// Unique in its [`Catalog`].
    pub name: String,
    /// Other names that mean this model, as long as no model is called so.
    pub aliases: Vec<String>,
    /// GGUF file (the first part, if split) or folder with `config.json`.
    pub path: PathBuf,
    /// Bytes on disk, all parts together.
    pub bytes: u64,
    /// Last change.
    pub modified: Option<SystemTime>,
    /// Where from.
    pub origin: Origin,
}

impl Discovered {
    /// The model at a path that somebody named.
    ///
    /// # Errors
    /// [`Error::Io`] when there is nothing at `path`.
    pub fn at(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let bytes = if meta.is_dir() { safetensors_bytes(path).unwrap_or(0) } else { shard_bytes(path, meta.len()) };
        Ok(Self {
            name: names::from_path(path),
            aliases: Vec::new(),
            path: path.into(),
            bytes,
            modified: meta.modified().ok(),
            origin: if names::hub_repo(path).is_some() { Origin::HuggingFace } else { Origin::File },
        })
    }
}

impl Discovered {
    /// 64 hexadecimal digits that tell models apart: the hash of its content where Ollama's store names it, else one of its place,
    /// size and time.
    pub fn digest(&self) -> String {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(digest) = name.strip_prefix("sha256-").filter(|digest| digest.len() == 64) {
            return digest.to_owned();
        }
        let modified = self.modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.path.as_os_str().as_encoded_bytes());
        hasher.update(&self.bytes.to_le_bytes());
        hasher.update(&modified.unwrap_or_default().as_nanos().to_le_bytes());
        hasher.finalize().to_hex().to_string()
    }
}

/// The folders that are searched, in this order: `extra`, `SHIMMY_MODEL_PATHS`, `OLLAMA_MODELS`, `./models`,
/// `~/models`, the Hugging Face cache, `~/.ollama/models`, LM Studio's two places, `~/.local/share/shimmy/models` and
/// the cache that `scripts/fetch-model` fills. `env` looks a variable up.
pub fn default_roots(extra: &[PathBuf], env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut roots = extra.to_vec();
    if let Some(paths) = env("SHIMMY_MODEL_PATHS") {
        roots.extend(split_paths(&paths.to_string_lossy()));
    }
    roots.extend(env("OLLAMA_MODELS").filter(|path| !path.is_empty()).map(PathBuf::from));
    roots.push("models".into());
    let home = env("HOME").or_else(|| env("USERPROFILE")).filter(|home| !home.is_empty()).map(PathBuf::from);
    if let Some(home) = &home {
        roots.push(home.join("models"));
    }
    if let Some(hub) = env("HF_HUB_CACHE").filter(|path| !path.is_empty()) {
        roots.push(hub.into());
    } else if let Some(hf) = env("HF_HOME").filter(|path| !path.is_empty()) {
        roots.push(PathBuf::from(hf).join("hub"));
    } else if let Some(home) = &home {
        roots.push(home.join(".cache/huggingface/hub"));
    }
    if let Some(home) = &home {
        for place in [".ollama/models", ".lmstudio/models", ".cache/lm-studio/models", ".local/share/shimmy/models"] {
            roots.push(home.join(place));
        }
    }
    if let Some(cache) = cache_folder(env) {
        roots.push(cache.join("models"));
    }
    roots
}

/// Shimmy's own cache folder: `SHIMMY_CACHE`, else `shimmy` in `XDG_CACHE_HOME`, else in `~/.cache`.
pub fn cache_folder(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("SHIMMY_CACHE")
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("shimmy")))
        .or_else(|| Some(path("HOME")?.join(".cache/shimmy")))
}

/// Splits at `:` or `;`, but leaves Windows' drive letters whole.
pub fn split_paths(text: &str) -> Vec<PathBuf> {
    let separator = |c: char| c == ';' || (c == ':' && !cfg!(windows));
    text.split(separator).map(str::trim).filter(|part| !part.is_empty()).map(PathBuf::from).collect()
}

/// All models under some roots, with unique names.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    models: Vec<Discovered>,
}

impl Catalog {
    /// Walks the roots. A root that doesn't exist or can't be read counts as empty: most people have one or two of them.
    pub fn scan(pinned: &[Discovered], roots: &[PathBuf]) -> Self {
        let mut walk = Walk { found: pinned.to_vec(), visited: HashSet::new(), entries: 0 };
        for root in roots {
            if root.is_file() {
                walk.found.extend(Discovered::at(root).ok());
            } else {
                walk.folder(root, 0);
            }
        }
        if walk.entries >= MAX_ENTRIES {
            tracing::warn!("stopped looking for models after {MAX_ENTRIES} directory entries; name narrower folders");
        }
        Self { models: unique(walk.found) }
    }

    /// In the order they were found: the first of equal names is the one that has it.
    pub fn models(&self) -> &[Discovered] {
        &self.models
    }

    /// The model called `name` or, if none is, the first that has it for an alias.
    pub fn find(&self, name: &str) -> Option<&Discovered> {
        let wanted = names::normalise(name);
        let is = |known: &str| known == name || known == wanted;
        self.models
            .iter()
            .find(|model| is(&model.name))
            .or_else(|| self.models.iter().find(|model| model.aliases.iter().any(|alias| is(alias))))
    }

    /// [`Error::ModelNotFound`] with the names most like `name`.
    pub fn not_found(&self, name: &str) -> Error {
        let nearest = names::nearest(name, self.models.iter().map(|model| model.name.as_str()), 3);
        Error::ModelNotFound { name: name.into(), nearest }
    }

    /// What a person may write where a model is asked for: a path, else a name.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] when it is neither.
    pub fn resolve(argument: &str, roots: &[PathBuf]) -> Result<Discovered> {
        let path = Path::new(argument);
        if path.exists() {
            return Discovered::at(path);
        }
        // What looks like a path is answered as one: with what the system says about it.
        if path.is_absolute() || argument.starts_with('.') || argument.to_ascii_lowercase().ends_with(".gguf") {
            let catalog = Self::scan(&[], roots);
            return match catalog.find(argument) {
                Some(model) => Ok(model.clone()),
                None => Discovered::at(path),
            };
        }
        let catalog = Self::scan(&[], roots);
        catalog.find(argument).cloned().ok_or_else(|| catalog.not_found(argument))
    }
}

/// Drops what was found twice and renames what would hide behind an equal name: `<folder>/<name>`, else the path.
fn unique(found: Vec<Discovered>) -> Vec<Discovered> {
    let mut taken = HashSet::new();
    let mut seen = HashSet::new();
    let mut models = Vec::with_capacity(found.len());
    for mut model in found {
        let real = model.path.canonicalize().unwrap_or_else(|_| model.path.clone());
        if !seen.insert((model.name.clone(), real)) {
            continue;
        }
        if taken.contains(&model.name) {
            let folder = model.path.parent().map(names::from_path).unwrap_or_default();
            let longer = format!("{folder}/{}", model.name);
            model.name = if taken.contains(&longer) { model.path.display().to_string() } else { longer };
        }
        if taken.insert(model.name.clone()) {
            models.push(model);
        }
    }
    models
}

struct Walk {
    found: Vec<Discovered>,
    /// Real paths, against loops of symbolic links.
    visited: HashSet<PathBuf>,
    entries: usize,
}

/// One directory entry, links followed.
struct Entry {
    name: String,
    path: PathBuf,
    meta: fs::Metadata,
}

impl Walk {
    /// The readable entries of a folder, by name, so that scans agree with each other.
    fn entries(&mut self, folder: &Path) -> Vec<Entry> {
        let Ok(read) = fs::read_dir(folder) else { return Vec::new() };
        let mut entries = Vec::new();
        for entry in read.flatten() {
            if self.entries >= MAX_ENTRIES {
                break;
            }
            self.entries += 1;
            let path = entry.path();
            let Ok(meta) = fs::metadata(&path) else { continue };
            entries.push(Entry { name: entry.file_name().to_string_lossy().into_owned(), path, meta });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    fn folder(&mut self, folder: &Path, depth: usize) {
        let Ok(real) = folder.canonicalize() else { return };
        if depth > MAX_DEPTH || !self.visited.insert(real) {
            return;
        }
        let entries = self.entries(folder);
        let has_folder = |name: &str| entries.iter().any(|entry| entry.name == name && entry.meta.is_dir());
        if has_folder("manifests") && has_folder("blobs") {
            self.ollama(folder);
            return;
        }
        self.files(folder, &entries);
        for entry in &entries {
            if !entry.meta.is_dir() || entry.name.starts_with('.') {
                continue;
            }
            if entry.name.starts_with("models--") && entry.path.join("snapshots").is_dir() {
                self.hub(&entry.path);
            } else {
                self.folder(&entry.path, depth + 1);
            }
        }
    }

    /// GGUF files (parts of one model together) and, beside a `config.json`, safetensors.
    fn files(&mut self, folder: &Path, entries: &[Entry]) {
        let mut parts: BTreeMap<(String, u32), Discovered> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.meta.is_file()) {
            if !entry.name.to_ascii_lowercase().ends_with(".gguf") {
                continue;
            }
            let model = Discovered {
                name: names::from_path(&entry.path),
                aliases: Vec::new(),
                path: entry.path.clone(),
                bytes: entry.meta.len(),
                modified: entry.meta.modified().ok(),
                origin: Origin::File,
            };
            let Some(shard) = names::shard(names::stem(&entry.name)) else {
                self.found.push(model);
                continue;
            };
            // Sorted by name, so the first part comes first and gives the path.
            parts.entry((shard.stem.to_owned(), shard.count)).and_modify(|m| m.bytes += model.bytes).or_insert(model);
        }
        self.found.extend(parts.into_values());
        if entries.iter().any(|entry| entry.name == "config.json")
            && let Some(bytes) = safetensors_bytes(folder)
        {
            let modified = fs::metadata(folder).and_then(|meta| meta.modified()).ok();
            let (name, path) = (names::from_path(folder), folder.to_path_buf());
            self.found.push(Discovered { name, aliases: Vec::new(), path, bytes, modified, origin: Origin::File });
        }
    }

    /// `models--org--name`: the snapshot that `refs/main` names, else the newest.
    fn hub(&mut self, repo: &Path) {
        let snapshots = repo.join("snapshots");
        let main = fs::read_to_string(repo.join("refs/main")).unwrap_or_default();
        let main = main.trim();
        let named = (!main.is_empty() && main.bytes().all(|b| b.is_ascii_alphanumeric()))
            .then(|| snapshots.join(main))
            .filter(|path| path.is_dir());
        let newest = || {
            let folders = self.entries(&snapshots).into_iter().filter(|entry| entry.meta.is_dir());
            folders.max_by_key(|entry| entry.meta.modified().ok()).map(|entry| entry.path)
        };
        let Some(snapshot) = named.or_else(newest) else { return };
        let start = self.found.len();
        // Not `folder`: the files are links into `blobs`, and sub-folders (`gguf/`, `onnx/`) are part of the snapshot.
        let mut folders = vec![(snapshot, 0)];
        while let Some((folder, depth)) = folders.pop() {
            let entries = self.entries(&folder);
            self.files(&folder, &entries);
            if depth < MAX_DEPTH {
                folders.extend(entries.into_iter().filter(|e| e.meta.is_dir()).map(|e| (e.path, depth + 1)));
            }
        }
        let is_only_one = self.found.len() == start + 1;
        for model in &mut self.found[start..] {
            model.origin = Origin::HuggingFace;
            if let Some(repo) = names::hub_repo(&model.path).filter(|_| is_only_one || model.path.is_dir()) {
                model.aliases.push(names::normalise(&repo));
                model.aliases.push(repo);
            }
        }
    }

    /// `manifests/<host>/<namespace>/<model>/<tag>` name blobs `sha256-<hex>`, which are GGUF files.
    fn ollama(&mut self, store: &Path) {
        let mut level = vec![(store.join("manifests"), Vec::new())];
        for _ in 0..4 {
            let mut next = Vec::new();
            for (folder, names) in level {
                for entry in self.entries(&folder) {
                    let mut names: Vec<String> = names.clone();
                    names.push(entry.name);
                    next.push((entry.path, names));
                }
            }
            level = next;
        }
        for (manifest, names) in level {
            let [host, namespace, model, tag] = names.as_slice() else { continue };
            let Some(blob) = manifest_blob(&manifest) else { continue };
            let path = store.join("blobs").join(blob);
            let Ok(meta) = fs::metadata(&path) else {
                tracing::debug!("{}: the blob {} is missing", manifest.display(), path.display());
                continue;
            };
            let mut name = match (host.as_str(), namespace.as_str()) {
                ("registry.ollama.ai", "library") => model.clone(),
                ("registry.ollama.ai", namespace) => format!("{namespace}/{model}"),
                (host, namespace) => format!("{host}/{namespace}/{model}"),
            };
            name.make_ascii_lowercase();
            let aliases = if tag == "latest" { vec![name.clone()] } else { Vec::new() };
            self.found.push(Discovered {
                name: format!("{name}:{tag}"),
                aliases,
                path,
                bytes: meta.len(),
                modified: meta.modified().ok(),
                origin: Origin::Ollama,
            });
        }
    }
}

/// The file name of the model's blob in an Ollama manifest. The digest comes from a file, so only hex gets into a path.
fn manifest_blob(manifest: &Path) -> Option<String> {
    let size = fs::metadata(manifest).ok().filter(fs::Metadata::is_file)?.len();
    if size > 1 << 20 {
        return None;
    }
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(manifest).ok()?).ok()?;
    let layers = manifest.get("layers")?.as_array()?;
    let is_model = |layer: &&serde_json::Value| {
        layer.get("mediaType").and_then(|kind| kind.as_str()) == Some("application/vnd.ollama.image.model")
    };
    let digest = layers.iter().find(is_model)?.get("digest")?.as_str()?.strip_prefix("sha256:")?;
    (digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit())).then(|| format!("sha256-{digest}"))
}

/// Bytes of the `.safetensors` files in a folder with `config.json`; `None` if it isn't one.
fn safetensors_bytes(folder: &Path) -> Option<u64> {
    if !folder.join("config.json").is_file() {
        return None;
    }
    let files = fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().to_ascii_lowercase().ends_with(".safetensors"));
    let sizes: Vec<u64> = files.filter_map(|entry| Some(fs::metadata(entry.path()).ok()?.len())).collect();
    (!sizes.is_empty()).then(|| sizes.iter().sum())
}

/// Bytes of all parts of the split model that `path` is a part of; `own` if it isn't split.
fn shard_bytes(path: &Path, own: u64) -> u64 {
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return own };
    let Some(shard) = names::shard(names::stem(&name)) else { return own };
    let extension = &name[names::stem(&name).len()..];
    (1..=shard.count)
        .filter_map(|index| {
            let part = format!("{}-{index:05}-of-{:05}{extension}", shard.stem, shard.count);
            Some(fs::metadata(path.with_file_name(part)).ok()?.len())
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn names_of(catalog: &Catalog) -> Vec<&str> {
        catalog.models().iter().map(|model| model.name.as_str()).collect()
    }

    #[test]
    fn plain_folders_shards_and_safetensors() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        write(at("A_Model Q4.gguf"), b"12345");
        write(at("deep/er/Big-00001-of-00002.gguf"), b"12");
        write(at("deep/er/Big-00002-of-00002.gguf"), b"345");
        write(at("Some.Model-1.5B/config.json"), b"{}");
        write(at("Some.Model-1.5B/model.safetensors"), b"1234");
        write(at("notes.txt"), b"no");
        write(at("no-config/model.safetensors"), b"no");
        write(at(".hidden/x.gguf"), b"no");
        let catalog = Catalog::scan(&[], &[root.path().into(), "/no/such/root".into()]);
        assert_eq!(names_of(&catalog), ["a-model-q4", "some.model-1.5b", "big"]);
        assert_eq!(catalog.find("big").unwrap().bytes, 5);
        assert!(catalog.find("big").unwrap().path.ends_with("Big-00001-of-00002.gguf"));
        assert_eq!(catalog.find("Some.Model-1.5B").unwrap().bytes, 4);
        assert_eq!(catalog.find("A_Model Q4.gguf").unwrap().name, "a-model-q4");
        assert_eq!(Discovered::at(&at("deep/er/Big-00002-of-00002.gguf")).unwrap().bytes, 5);
    }

    #[test]
    fn equal_names_of_different_files_stay_apart() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["one", "two"] {
            write(root.path().join(folder).join("m.gguf"), folder.as_bytes());
        }
        let catalog = Catalog::scan(&[], &[root.path().into(), root.path().join("one")]);
        assert_eq!(names_of(&catalog), ["m", "two/m"]);
        assert_eq!(fs::read(&catalog.find("two/m").unwrap().path).unwrap(), b"two");
    }

    #[test]
    fn hugging_face_cache() {
        let root = tempfile::tempdir().unwrap();
        let repo = root.path().join("models--Org--Nice-Model");
        write(repo.join("refs/main"), b"bbb\n");
        write(repo.join("snapshots/aaa/old.gguf"), b"old");
        write(repo.join("blobs/123"), b"weights");
        write(repo.join("snapshots/bbb/config.json"), b"{}");
        #[cfg(unix)]
        std::os::unix::fs::symlink("../../blobs/123", repo.join("snapshots/bbb/model.safetensors")).unwrap();
        #[cfg(not(unix))]
        write(repo.join("snapshots/bbb/model.safetensors"), b"weights");
        let catalog = Catalog::scan(&[], &[root.path().into()]);
        assert_eq!(names_of(&catalog), ["nice-model"]);
        let model = catalog.find("Org/Nice-Model").unwrap();
        assert_eq!((model.origin, model.bytes), (Origin::HuggingFace, 7));
    }

    #[test]
    fn ollama_store_in_place() {
        let root = tempfile::tempdir().unwrap();
        let digest = "ab".repeat(32);
        let manifest = |digest: &str| {
            format!(
                r#"{{"layers":[{{"mediaType":"application/vnd.ollama.image.license","digest":"sha256:00"}},
                {{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{digest}"}}]}}"#
            )
        };
        let library = root.path().join("manifests/registry.ollama.ai/library");
        write(library.join("llama3.2/1b"), manifest(&digest).as_bytes());
        write(library.join("llama3.2/latest"), manifest(&digest).as_bytes());
        write(library.join("evil/latest"), manifest("../../../../etc/passwd").as_bytes());
        write(library.join("broken/latest"), b"{not json");
        write(root.path().join("manifests/hf.co/Org/m/q8"), manifest(&digest).as_bytes());
        write(root.path().join(format!("blobs/sha256-{digest}")), b"GGUF");
        let catalog = Catalog::scan(&[], &[root.path().into()]);
        assert_eq!(names_of(&catalog), ["hf.co/org/m:q8", "llama3.2:1b", "llama3.2:latest"]);
        assert_eq!(catalog.find("llama3.2").unwrap().name, "llama3.2:latest");
        assert_eq!(catalog.find("llama3.2:1b").unwrap().bytes, 4);
    }

    #[cfg(unix)]
    #[test]
    fn a_loop_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        write(root.path().join("a/m.gguf"), b"1");
        std::os::unix::fs::symlink(root.path(), root.path().join("a/back")).unwrap();
        assert_eq!(names_of(&Catalog::scan(&[], &[root.path().into()])), ["m"]);
    }

    #[test]
    fn an_argument_is_a_path_or_a_name() {
        let root = tempfile::tempdir().unwrap();
        write(root.path().join("nice-model.gguf"), b"1");
        let roots = [root.path().to_path_buf()];
        let path = root.path().join("nice-model.gguf");
        assert_eq!(Catalog::resolve(path.to_str().unwrap(), &roots).unwrap().path, path);
        assert_eq!(Catalog::resolve("Nice_Model", &roots).unwrap().path, path);
        assert_eq!(Catalog::resolve("nice-model.gguf", &roots).unwrap().path, path);
        match Catalog::resolve("nice-modle", &roots) {
            Err(Error::ModelNotFound { nearest, .. }) => assert_eq!(nearest, ["nice-model"]),
            other => panic!("{other:?}"),
        }
        assert!(matches!(Catalog::resolve("./nothing.gguf", &roots), Err(Error::Io { .. })));
    }

    #[test]
    fn roots_follow_the_environment() {
        let env = |name: &str| match name {
            "HOME" => Some("/h".into()),
            "SHIMMY_MODEL_PATHS" => Some("/a:/b;/c".into()),
            "OLLAMA_MODELS" => Some("/o".into()),
            "HF_HOME" => Some("/hf".into()),
            _ => None,
        };
        let roots = default_roots(&["/x".into()], env);
        let expected = ["/x", "/a", "/b", "/c", "/o", "models", "/h/models", "/hf/hub", "/h/.ollama/models"];
        assert_eq!(roots[..9], expected.map(PathBuf::from));
        assert_eq!(roots[roots.len() - 2], PathBuf::from("/h/.local/share/shimmy/models"));
        assert_eq!(roots[roots.len() - 1], PathBuf::from("/h/.cache/shimmy/models"));
        assert_eq!(default_roots(&[], |_| None), [PathBuf::from("models")]);
    }
}
