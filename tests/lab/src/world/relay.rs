//! Runs one child with its output relayed, or with the user's terminal.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Terminal;
use crate::process::Guarded;

/// Starts `command`, relays its standard output and waits for its end.
///
/// # Errors
/// It cannot be started, or does not end within `limit`.
pub fn run(command: &mut Command, terminal: &mut Terminal<'_>, limit: Duration) -> Result<ExitStatus> {
    match terminal {
        Terminal::Interactive => Guarded::spawn(command)?.wait(limit, || ()),
        Terminal::Output(sink) => {
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = Guarded::spawn(command)?;
            let chunks = chunks(child.take_stdout().context("no output to relay")?);
            let status = child.wait(limit, || {
                chunks.try_iter().for_each(|chunk| sink.take(&chunk));
                sink.tick();
            })?;
            chunks.iter().for_each(|chunk| sink.take(&chunk));
            Ok(status)
        }
    }
}

/// What a reader yields, piece by piece, until its end.
fn chunks(mut reader: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}
