//! The world *here*: commands run on this host.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Terminal, Word, Workload, relay};
use crate::process::exit_code;

/// Runs the workload's commands.
///
/// # Errors
/// A command cannot be started or does not end within `limit`.
pub fn run(workload: &Workload, mut terminal: Terminal<'_>, limit: Duration) -> Result<Vec<i32>> {
    let mut codes = Vec::new();
    for words in &workload.commands {
        let words: Vec<String> = words.iter().map(|word| resolve(workload, word)).collect::<Result<_>>()?;
        let (program, arguments) = words.split_first().context("a command without words")?;
        let mut command = Command::new(program);
        command.args(arguments);
        for (name, value) in &workload.env {
            command.env(name, resolve(workload, value)?);
        }
        codes.push(exit_code(relay::run(&mut command, &mut terminal, limit)?));
    }
    Ok(codes)
}

fn resolve(workload: &Workload, word: &Word) -> Result<String> {
    match word {
        Word::Text(text) => Ok(text.clone()),
        Word::File(name) => {
            let file = workload.files.iter().find(|(known, _)| known == name);
            let (_, path) = file.with_context(|| format!("no file {name} in the workload"))?;
            Ok(path_text(path)?.to_owned())
        }
    }
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not Unicode", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Printed(Vec<u8>);

    impl crate::world::Sink for Printed {
        fn take(&mut self, chunk: &[u8]) {
            self.0.extend_from_slice(chunk);
        }
    }

    #[test]
    fn files_and_variables_reach_the_commands() {
        let shell = |script: &str| vec![Word::from("sh"), "-c".into(), script.into()];
        let workload = Workload {
            files: vec![("tool".to_owned(), "/a/b".into())],
            env: vec![("TOOL", Word::file("tool"))],
            commands: vec![shell("echo $TOOL; exit 3"), shell("exit 0")],
        };
        let mut printed = Printed(Vec::new());
        let codes = run(&workload, Terminal::Output(&mut printed), Duration::from_secs(10)).unwrap();
        assert_eq!((codes, printed.0.as_slice()), (vec![3, 0], b"/a/b\n".as_slice()));
    }
}
