//! Disk images whose content tells where it belongs, for the guest's program `disk-check`.

use std::path::PathBuf;

/// Length of an image in bytes.
pub const BYTES: usize = 8 << 20;
/// As in the guest's program `disk-check`.
const HOST_SEED: u64 = 0x686f_7374;
const GUEST_SEED: u64 = 0x6775_6573;

/// Bytes that tell where they belong; the same as the guest's.
fn pattern(seed: u64, offset: usize, len: usize) -> Vec<u8> {
    let word = |n: usize| ((n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_le_bytes();
    (offset / 8..(offset + len) / 8).flat_map(word).collect()
}

/// A file that goes when the test ends.
pub struct Image(PathBuf);

impl Image {
    /// A file in the folder for temporary files, with the host's pattern all over.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(name: &str) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("svmm-{name}-{}.img", std::process::id()));
        std::fs::write(&path, pattern(HOST_SEED, 0, BYTES))?;
        Ok(Self(path))
    }

    /// As [`Image::new`], of `bytes` zeros that take no room.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn blank(name: &str, bytes: u64) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("svmm-{name}-{}.img", std::process::id()));
        std::fs::File::create(&path)?.set_len(bytes)?;
        Ok(Self(path))
    }

    /// Its path, as `--disk` takes it.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.display().to_string()
    }

    /// Whether the guest's program has put its pattern into the second half, and nothing else changed.
    #[must_use]
    pub fn is_written(&self) -> bool {
        let half = BYTES / 2;
        let expected = [pattern(HOST_SEED, 0, half), pattern(GUEST_SEED, half, half)].concat();
        std::fs::read(&self.0).is_ok_and(|content| content == expected)
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        std::fs::read(&self.0).is_ok_and(|content| content == pattern(HOST_SEED, 0, BYTES))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
