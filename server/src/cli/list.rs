//! `shimmy list`: the models found on this machine. Reads headers, never weights.

use serde::Serialize;
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::models::{Catalog, Discovered, Origin, Summary};

use super::args::RootArgs;
use super::output;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print an array of JSON objects.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    roots: RootArgs,
}

/// One model.
#[derive(Serialize)]
struct Entry {
    name: String,
    path: String,
    bytes: u64,
    origin: Origin,
    #[serde(flatten)]
    summary: Option<Summary>,
    /// Why the file can't be read.
    error: Option<String>,
}

impl Entry {
    fn new(model: Discovered) -> Self {
        let (summary, error) = match ModelFile::open(&model.path).and_then(|file| Summary::of(&file)) {
            Ok(summary) => (Some(summary), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let Discovered { name, path, bytes, origin, .. } = model;
        Self { name, path: path.display().to_string(), bytes, origin, summary, error }
    }

    fn row(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let name = output::printable(&self.name, 60);
        let size = output::bytes(self.bytes);
        let path = output::printable(&self.path, 400);
        match &self.summary {
            Some(summary) => vec![
                name,
                output::printable(&or_dash(summary.architecture.clone()), 24),
                or_dash(summary.dtype.clone()),
                output::count(summary.parameters),
                or_dash(summary.context.map(|context| context.to_string())),
                size,
                path,
            ],
            None => {
                let error = output::printable(self.error.as_deref().unwrap_or_default(), 400);
                vec![name, "-".into(), "-".into(), "-".into(), "-".into(), size, format!("unreadable: {error}")]
            }
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When stdout is closed.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let roots = args.roots.roots();
    let catalog = Catalog::scan(&[], &roots);
    let entries: Vec<Entry> = catalog.models().iter().cloned().map(Entry::new).collect();
    if args.json {
        return output::json(&entries);
    }
    if entries.is_empty() {
        eprintln!("no models found. These places were searched; --model-dirs adds others:");
        for root in roots {
            eprintln!("  {}", root.display());
        }
        return Ok(());
    }
    let head = ["NAME", "ARCHITECTURE", "TYPE", "PARAMS", "CONTEXT", "SIZE", "PATH"].map(String::from).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(entries.iter().map(Entry::row)).collect();
    output::write(&output::table(&rows, &[3, 4, 5]))
}
