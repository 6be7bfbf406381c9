//! The chat page in a real browser, and its modules in Node.

use std::fs;
use std::path::Path;

use crate::binary::{Server, wait};
use crate::{support, tools};

/// What the driver was written with.
const DRIVER: [&str; 1] = ["selenium==4.51.0"];

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[test]
fn its_modules_do_what_they_say() {
    if !has("node") {
        return support::skip("no node: the page's modules are not tested without a browser");
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("server/src/ui");
    tools::run("node", &[tools::script("page_units.mjs").as_os_str(), page.as_os_str()]);
}

#[test]
fn page_in_a_browser() {
    if !has("chromium") || !has("chromedriver") {
        // Not even CI has a browser on every machine.
        return support::skip_unless(
            "REQUIRE_BROWSER",
            "no chromium and chromedriver: the page is not tested in a browser",
        );
    }
    let Some(model) = support::fetch_model("smollm2") else { return };
    let python = match tools::python("browser", &DRIVER) {
        Ok(python) => python,
        Err(why) => return support::skip(&why),
    };
    // The same file under another name is another model.
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&model, folder.path().join("second.gguf")).unwrap();
    // Where somebody wants to look at the screenshots, they stay.
    let kept = std::env::var_os("SHIMMY_SCREENSHOTS").map(std::path::PathBuf::from);
    let shots = kept.unwrap_or_else(|| folder.path().join("screenshots"));
    fs::create_dir_all(&shots).unwrap();
    let mut server = Server::start_with(&model, &["--model-dirs", &folder.path().display().to_string()]);
    let pid = server.child.id().to_string();
    let args = [server.url.as_ref(), pid.as_ref(), "second".as_ref(), shots.as_os_str()];
    let script = tools::script("page_browser.py");
    tools::run(python, &[&[script.as_os_str()][..], &args].concat());
    assert_eq!(wait(&mut server.child), None, "the driver killed it");
    assert!(fs::read_dir(&shots).unwrap().count() >= 20);
}
