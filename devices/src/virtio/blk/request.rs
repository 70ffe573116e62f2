//! From a chain's head to what is to be done (§5.2.6). **Pure.**

use super::spec::{Header, SECTOR, request};

/// The last byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done, or not all of it.
    IoError = 1,
    /// There is no such request.
    Unsupported = 2,
}

/// What a disk is asked for. Offsets and lengths are in bytes and lie inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
    },
    Flush,
    GetId,
    /// So many bytes of segments.
    Discard {
        len: u64,
    },
}

/// What bounds requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of the disk, whole sectors.
    pub(super) disk: u64,
    pub(super) read_only: bool,
}

impl Limits {
    /// `sectors` sectors from `sector` on, in bytes.
    pub(super) fn range(&self, sector: u64, bytes: u64) -> Result<u64, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(bytes).ok_or(Status::IoError)?;
        if bytes.is_multiple_of(SECTOR) && end <= self.disk { Ok(offset) } else { Err(Status::IoError) }
    }

    fn writable(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(()) }
    }

    /// What `header` asks for, with so many bytes of data to read and to write behind it.
    pub(super) fn decode(&self, header: &Header, readable: u64, writable: u64) -> Result<Request, Status> {
        match header.kind.get() {
            request::READ => {
                let offset = self.range(header.sector.get(), writable)?;
                Ok(Request::Read { offset, len: writable })
            }
            request::WRITE => {
                self.writable()?;
                let offset = self.range(header.sector.get(), readable)?;
                Ok(Request::Write { offset, len: readable })
            }
            request::FLUSH => Ok(Request::Flush),
            request::GET_ID => Ok(Request::GetId),
            request::DISCARD => {
                self.writable()?;
                Ok(Request::Discard { len: readable })
            }
            _ => Err(Status::Unsupported),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { disk: 100 * SECTOR, read_only: false };

    #[test]
    fn requests_are_told_apart_and_bounded() {
        type Row = (&'static str, u32, u64, (u64, u64), bool, Result<Request, Status>);
        let (error, none) = (Err(Status::IoError), Err(Status::Unsupported));
        let rows: [Row; 14] = [
            ("read", 0, 99, (0, 512), false, Ok(Request::Read { offset: 99 * 512, len: 512 })),
            ("read of nothing", 0, 100, (0, 0), false, Ok(Request::Read { offset: 51200, len: 0 })),
            ("beyond the end", 0, 99, (0, 1024), false, error),
            ("half a sector", 0, 0, (0, 256), false, error),
            ("overflow", 0, u64::MAX / 512, (0, 1024), false, error),
            ("wild sector", 0, u64::MAX, (0, 512), false, error),
            ("write", 1, 0, (1024, 0), false, Ok(Request::Write { offset: 0, len: 1024 })),
            ("write to a read-only disk", 1, 0, (512, 0), true, error),
            ("read of a read-only disk", 0, 0, (0, 512), true, Ok(Request::Read { offset: 0, len: 512 })),
            ("flush", 4, 7, (0, 0), true, Ok(Request::Flush)),
            ("get-id", 8, 0, (0, 20), false, Ok(Request::GetId)),
            ("discard", 11, 0, (16, 0), false, Ok(Request::Discard { len: 16 })),
            ("discard on a read-only disk", 11, 0, (16, 0), true, error),
            ("write zeroes", 13, 0, (16, 0), false, none),
        ];
        for (name, kind, sector, (readable, writable), read_only, expected) in rows {
            let header = Header { kind: kind.into(), sector: sector.into(), ..Header::default() };
            let limits = Limits { read_only, ..LIMITS };
            assert_eq!(limits.decode(&header, readable, writable), expected, "{name}");
        }
    }
}
