//! The workspace's own programs, built for the place they run in.
//!
//! What runs inside a guest or inside the cloud machine is linked statically. Cargo decides
//! what is up to date.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{Guarded, describe};
use crate::ui::Progress;

/// The target triple of programs for guests and for the cloud machine.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-C target-feature=+crt-static";
const STATIC_VARIABLE: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";

/// The root folder of this workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_path_buf()
}

/// An executable that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Cargo's name of the target.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// Builds the static release binary `name` of `package`.
///
/// # Errors
/// Cargo fails; its messages have gone to stderr.
pub fn binary(package: &str, name: &str) -> Result<PathBuf> {
    let built =
        cargo(&format!("building {name}"), &["build", "--release", "--package", package, "--bin", name])?;
    let program = built.into_iter().find(|program| program.name == name);
    let program = program.with_context(|| format!("cargo built no {name}"))?;
    Ok(program.path)
}

/// Builds the static test programs of `package`: its integration tests.
///
/// # Errors
/// Cargo fails.
pub fn integration_tests(package: &str) -> Result<Vec<Program>> {
    cargo("building the guest tests", &["test", "--no-run", "--package", package, "--test", "*"])
}

/// The cargo that runs this lab.
#[must_use]
pub fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn cargo(what: &str, arguments: &[&str]) -> Result<Vec<Program>> {
    let mut command = Command::new(cargo_program());
    command
        .args(arguments)
        .args(["--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .env(STATIC_VARIABLE, STATIC)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let line = describe(&command);
    let progress = Progress::start_beside_output(what);
    let mut child = Guarded::spawn(&mut command)?;
    let stdout = child.take_stdout().context("cargo has no output")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(stdout));
    let status = child.wait(std::time::Duration::MAX, || ())?;
    let messages = reader.join().unwrap_or_else(|_| Ok(String::new()))?;
    if !status.success() {
        bail!("`{line}` failed; its messages are above");
    }
    progress.done("");
    Ok(executables(&messages))
}

/// The executables in cargo's JSON messages.
fn executables(messages: &str) -> Vec<Program> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let name = message.pointer("/target/name").and_then(Value::as_str);
        let path = message.get("executable").and_then(Value::as_str);
        if let (Some(name), Some(path)) = (name, path) {
            programs.push(Program { name: name.to_owned(), path: PathBuf::from(path) });
        }
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executables_count() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"a"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"b"},"executable":"/x/b"}
not json
{"reason":"build-finished","success":true}"#;
        let expected = Program { name: "b".into(), path: "/x/b".into() };
        assert_eq!(executables(messages), [expected]);
    }

    #[test]
    fn the_workspace_is_where_this_package_is() {
        assert!(workspace().join("tests/lab/Cargo.toml").is_file());
    }
}
