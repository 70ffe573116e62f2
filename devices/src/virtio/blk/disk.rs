//! What a disk's contents are kept in.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

/// Contents. All offsets and lengths are in bytes and lie inside [`Disk::len`]; any of them may block.
pub trait Disk: Send {
    /// How many bytes there are; it does not change.
    fn len(&self) -> u64;

    /// Whether there is nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `data`.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Stores `data`.
    ///
    /// # Errors
    /// It cannot be written; some of it may have been.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// It may not be durable.
    fn flush(&mut self) -> io::Result<()>;

    /// The contents of a range are not needed any more; it may read as anything. Only advice.
    ///
    /// # Errors
    /// A failure of the disk. That it cannot forget is none.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// A disk in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(pub Vec<u8>);

impl MemoryDisk {
    fn part(&mut self, offset: u64, len: usize) -> io::Result<&mut [u8]> {
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|start| self.0.get_mut(start..start.checked_add(len)?));
        part.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.copy_from_slice(self.part(offset, data.len())?);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.part(offset, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.part(offset, len)?.fill(0);
        Ok(())
    }
}

/// A disk in a file or on a block device.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    len: u64,
}

impl FileDisk {
    /// The first `len` bytes of `file`.
    #[must_use]
    pub fn new(file: File, len: u64) -> Self {
        Self { file, len }
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, hole, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_keep_what_is_written() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let disks: [(&str, Box<dyn Disk>); 2] =
            [("memory", Box::new(MemoryDisk(vec![0; 8192]))), ("file", Box::new(FileDisk::new(file, 8192)))];
        for (name, mut disk) in disks {
            let mut data = [0xff; 600];
            assert_eq!(disk.len(), 8192, "{name}");
            disk.write(4000, &[7; 300]).unwrap();
            disk.flush().unwrap();
            disk.read(3900, &mut data).unwrap();
            let expected: Vec<u8> = [vec![0; 100], vec![7; 300], vec![0; 200]].concat();
            assert_eq!(data[..], expected, "{name}");
            disk.discard(0, 4096).unwrap();
            disk.read(4096, &mut data[..204]).unwrap();
            assert_eq!(data[..204], [7; 204], "{name}");
            assert!(disk.read(8000, &mut data).is_err(), "{name}: beyond the end");
        }
    }
}
