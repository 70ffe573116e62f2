//! Budgets on the shape of the source tree (DESIGN.md, "Budgets"): what no lint checks.

mod graph;
mod paths;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lines of a file before its tests.
const FILE_LINES: usize = 500;
/// Crates that may hold `unsafe`; every other one forbids it.
const UNSAFE_ALLOWED: &[&str] = &["vmm", "guest", "vfio-bridge"];

/// One source file of a crate.
struct Source {
    /// Path below the workspace, for messages.
    shown: String,
    /// The module, as path segments below the crate; empty for the root.
    module: Vec<String>,
    /// The text before the tests.
    text: String,
}

/// Checks every crate of the workspace; prints what is over its budget.
///
/// # Errors
/// A source file cannot be read.
pub fn check(workspace: &Path) -> Result<bool> {
    let mut complaints = Vec::new();
    let mut count = 0;
    for manifest in manifests(workspace)? {
        let folder = manifest.parent().unwrap_or(workspace).join("src");
        let sources = sources(workspace, &folder)?;
        count += sources.len();
        complaints.extend(sources.iter().filter_map(too_long));
        complaints.extend(unsafe_not_forbidden(&manifest, &sources)?);
        let crate_shown = folder.strip_prefix(workspace).unwrap_or(&folder).display().to_string();
        let cycles = graph::cycles(&edges(&sources));
        complaints.extend(cycles.iter().map(|cycle| format!("{crate_shown}: modules in a cycle: {cycle}")));
    }
    for complaint in &complaints {
        println!("  {complaint}");
    }
    println!("  {count} files, {} over a budget", complaints.len());
    Ok(complaints.is_empty())
}

/// The manifests of the workspace's packages: those with a `src` beside them.
fn manifests(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !path.is_dir() || hidden || path.ends_with("target") || path.ends_with("src") {
            continue;
        }
        let manifest = path.join("Cargo.toml");
        if manifest.is_file() && path.join("src").is_dir() {
            found.push(manifest);
        }
        found.extend(manifests(&path)?);
    }
    Ok(found)
}

fn sources(workspace: &Path, folder: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(current) = folders.pop() {
        for entry in fs::read_dir(&current)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let below = path.strip_prefix(folder).unwrap_or(&path);
                found.push(Source {
                    shown: path.strip_prefix(workspace).unwrap_or(&path).display().to_string(),
                    module: module(below),
                    text: before_tests(&text).to_owned(),
                });
            }
        }
    }
    Ok(found)
}

/// `pci/bar.rs` is `pci`, `bar`; `pci/mod.rs` is `pci`; `lib.rs` is the root.
fn module(below_src: &Path) -> Vec<String> {
    let mut segments: Vec<String> =
        below_src.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let last = segments.last().map_or("", String::as_str);
    if last == "mod" || (segments.len() == 1 && (last == "lib" || last == "main")) {
        segments.pop();
    }
    segments
}

fn before_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod tests").map_or(text, |at| &text[..at])
}

fn too_long(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    let over = lines > FILE_LINES;
    over.then(|| format!("{}: {lines} lines before its tests, budget {FILE_LINES}", source.shown))
}

fn unsafe_not_forbidden(manifest: &Path, sources: &[Source]) -> Result<Option<String>> {
    let text = fs::read_to_string(manifest)?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = ")).unwrap_or_default();
    let name = name.trim_matches('"');
    let forbids = |source: &Source| source.text.contains("#![forbid(unsafe_code)]");
    let roots = sources.iter().filter(|source| source.module.is_empty());
    let lax: Vec<&str> =
        roots.filter(|source| !forbids(source)).map(|source| source.shown.as_str()).collect();
    let wrong = !UNSAFE_ALLOWED.contains(&name) && !lax.is_empty();
    Ok(wrong.then(|| format!("{}: lacks #![forbid(unsafe_code)]", lax.join(", "))))
}

/// Which module names which, as module paths.
fn edges(sources: &[Source]) -> Vec<(Vec<String>, Vec<String>)> {
    let known: Vec<&[String]> = sources.iter().map(|source| source.module.as_slice()).collect();
    let mut edges = Vec::new();
    for source in sources {
        for path in paths::named(&source.text, &source.module) {
            let whole = (0..=path.len()).rev().map(|length| &path[..length]);
            let target = whole.into_iter().find(|prefix| known.contains(prefix));
            edges.extend(target.map(|target| (source.module.clone(), target.to_vec())));
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_modules() {
        assert_eq!(module(Path::new("pci/bar.rs")), ["pci", "bar"]);
        assert_eq!(module(Path::new("pci/mod.rs")), ["pci"]);
        assert!(module(Path::new("lib.rs")).is_empty());
    }

    #[test]
    fn this_workspace_has_sources() {
        let workspace = crate::programs::workspace();
        let manifests = manifests(&workspace).unwrap();
        assert!(manifests.contains(&workspace.join("tests/lab/Cargo.toml")), "{manifests:?}");
    }

    #[test]
    fn a_cycle_between_files_is_seen() {
        let source = |module: &[&str], text: &str| Source {
            shown: String::new(),
            module: module.iter().map(ToString::to_string).collect(),
            text: text.into(),
        };
        let sources = [
            source(&[], "mod a; mod b;"),
            source(&["a"], "use crate::b::Thing;"),
            source(&["b", "inner"], "fn f() { super::super::a::help(); }"),
            source(&["b"], "mod inner; pub use inner::Thing;"),
        ];
        assert_eq!(graph::cycles(&edges(&sources)), ["a, b"]);
    }
}
