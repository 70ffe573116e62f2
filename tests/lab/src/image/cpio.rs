//! The `newc` archive that Linux unpacks as its first file system
//! (kernel documentation, "initramfs buffer format").

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Major and minor number of `/dev/console`, which the kernel opens for its first process.
const CONSOLE: (u32, u32) = (5, 1);

/// An archive being built; folders of a file are added before it.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// An archive with `/dev/console`, so that the first process has its standard streams.
    #[must_use]
    pub fn new() -> Self {
        let mut archive = Self::default();
        archive.folder("dev");
        archive.entry("dev/console", CHARACTER_DEVICE, CONSOLE, &[]);
        archive
    }

    /// Adds an executable file at `path` (absolute or relative to the root).
    pub fn file(&mut self, path: &str, content: &[u8]) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// Adds a symbolic link at `path` to `target`.
    pub fn link(&mut self, path: &str, target: &str) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.entry(path, LINK, (0, 0), target.as_bytes());
    }

    /// Adds the host's file `source` at `path`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn host_file(&mut self, path: &str, source: &Path) -> Result<()> {
        let content = std::fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        self.file(path, &content);
        Ok(())
    }

    /// Adds a folder and its parents.
    pub fn folder(&mut self, path: &str) {
        if path.is_empty() || self.folders.contains(path) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.folders.insert(path.to_owned());
        self.entry(path, FOLDER, (0, 0), &[]);
    }

    /// Ends the archive and puts it at `target`, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(mut self, target: &Path) -> Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        let attempt = || -> std::io::Result<()> {
            let part = target.with_extension("part");
            std::fs::write(&part, &self.bytes)?;
            std::fs::rename(&part, target)
        };
        attempt().with_context(|| format!("cannot write {}", target.display()))
    }

    /// One header of 13 hexadecimal fields, the name, the content; each padded to 4 bytes.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let links = 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            length(content.len()),
            0,
            0,
            device.0,
            device.1,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_once_and_first_and_all_is_aligned() {
        let mut archive = Archive::new();
        archive.file("/bin/tool", b"abc");
        archive.file("/bin/other", b"abcd");
        let text = String::from_utf8_lossy(&archive.bytes).into_owned();
        let at = |what: &str| text.find(what).unwrap();
        assert!(at("bin\0") < at("bin/tool\0"));
        assert_eq!(text.matches("bin\0").count(), 1);
        assert_eq!(archive.bytes.len() % 4, 0);
        let size_field = &archive.bytes[at("bin/tool\0") - 110 + 6 + 6 * 8..][..8];
        assert_eq!(size_field, b"00000003");
    }
}
