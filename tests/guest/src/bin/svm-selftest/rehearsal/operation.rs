//! Operations on memory, as the model carries them out.

use super::Flaw;
use super::memory::{Memory, Refusal, offset};
use crate::endpoint::{NO_DIFFERENCE, Operation, Reason};
use crate::model;
use crate::sys::PAGE;

const LONGEST: u64 = 1 << 30;

pub(super) const SUCCESS: u8 = 1;
pub(super) const FAULT: u8 = 2;
pub(super) const INVALID: u8 = 3;
pub(super) const ABORTED: u8 = 4;
pub(super) const INCOMPLETE: u8 = 5;
pub(super) const FENCED: u8 = 6;

/// How an operation ended.
pub(super) struct End {
    pub(super) status: u8,
    pub(super) refusal: Option<Refusal>,
    pub(super) completed: u64,
    pub(super) result: u64,
}

impl End {
    pub(super) fn new(status: u8) -> Self {
        Self { status, refusal: None, completed: 0, result: 0 }
    }

    pub(super) fn invalid() -> Self {
        Self::new(INVALID)
    }

    pub(super) fn refused(reason: Reason) -> Self {
        let refusal = Some(Refusal { address: 0, write: false, reason });
        Self { status: FAULT, refusal, completed: 0, result: 0 }
    }
}

pub(super) fn is_valid(operation: &Operation, record: u64) -> bool {
    let known = operation.opcode <= 8 && operation.flags & 0xf0 == 0 && operation.reserved == 0;
    let fits = |address: u64| address.checked_add(operation.length).is_some() || operation.opcode == 5;
    let special = match operation.opcode {
        6 => operation.length <= 1024 && operation.source.is_multiple_of(64),
        8 => operation.operand <= 1,
        _ => true,
    };
    known
        && special
        && record.is_multiple_of(32)
        && operation.length <= LONGEST
        && fits(operation.source)
        && fits(operation.destination)
}

pub(super) fn write_record(
    memory: &mut Memory,
    end: &End,
    tag: u32,
    record: u64,
    aborted: bool,
) -> Result<(), Refusal> {
    let refusal = end.refusal.unwrap_or(Refusal { address: 0, write: false, reason: Reason::NotAccessible });
    let reason = match refusal.reason {
        Reason::NoPageRequests => 1,
        Reason::Refused => 2,
        _ => 0,
    };
    let information = u8::from(refusal.write) | reason << 1;
    let requests = u16::try_from(memory.requests).unwrap_or(u16::MAX);
    let mut bytes = [0; 32];
    bytes[0] = end.status;
    bytes[1] = information;
    bytes[2..4].copy_from_slice(&requests.to_le_bytes());
    bytes[4..8].copy_from_slice(&tag.to_le_bytes());
    bytes[8..16].copy_from_slice(&end.completed.to_le_bytes());
    bytes[16..24].copy_from_slice(&refusal.address.to_le_bytes());
    bytes[24..32].copy_from_slice(&end.result.to_le_bytes());
    memory.asks = !aborted;
    memory.write_now(record + 8, &bytes[8..])?;
    memory.write_now(record, &bytes[..8])
}

/// An operation at work.
pub(super) struct Execution<'a> {
    pub(super) flaw: Flaw,
    pub(super) memory: &'a mut Memory,
    /// Shows whether it waits; says whether it is still wanted.
    pub(super) pause: &'a dyn Fn(bool) -> bool,
}

/// Why an operation stops.
enum Stop {
    Refused(Refusal),
    Aborted,
    Found(u64),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Execution<'_> {
    pub(super) fn run(&mut self, operation: &Operation) -> End {
        let end = |start: u64| start.saturating_add(operation.length);
        self.memory.expect(operation.ahead, end(operation.source), end(operation.destination));
        let (mut completed, mut result) = (0, 0);
        let outcome = if operation.opcode == 5 {
            self.chase(operation, &mut completed, &mut result)
        } else {
            self.span(operation, &mut completed, &mut result)
        };
        (self.pause)(false);
        let (status, refusal) = match outcome {
            Ok(()) => (SUCCESS, None),
            Err(Stop::Found(at)) => {
                result = at;
                (SUCCESS, None)
            }
            Err(Stop::Aborted) => (ABORTED, None),
            Err(Stop::Refused(refusal)) => (FAULT, Some(refusal)),
        };
        if refusal.is_some() && self.flaw == Flaw::ForgetsPart {
            completed = 0;
        }
        End { status, refusal, completed, result }
    }

    fn pause(&mut self) -> Result<(), Stop> {
        if (self.pause)(self.memory.requests > 0) { Ok(()) } else { Err(Stop::Aborted) }
    }

    /// Everything but lists: piece by piece, none across a page of either side.
    fn span(&mut self, operation: &Operation, completed: &mut u64, result: &mut u64) -> Result<(), Stop> {
        let Operation { opcode, source, destination, length, operand, .. } = *operation;
        self.pause()?;
        let mut sum = u32::try_from(operand & 0xffff_ffff).unwrap_or(0);
        if opcode == 3 {
            *result = NO_DIFFERENCE;
        }
        if length == 0 && opcode == 1 && self.flaw == Flaw::Eager {
            self.memory.read(source, &mut [0])?;
        }
        while opcode != 0 && *completed < length {
            self.pause()?;
            let (from, to) = (source + *completed, destination + *completed);
            let room = PAGE - offset(from).max(offset(to));
            let piece = usize::try_from(length - *completed).unwrap_or(usize::MAX).min(room);
            let mut bytes = vec![0; piece];
            if opcode != 2 {
                self.memory.read(from, &mut bytes)?;
            }
            match opcode {
                1 => {
                    let short = self.flaw == Flaw::LosesByte && length > PAGE as u64;
                    let last = short && *completed + piece as u64 == length;
                    self.memory.write(to, &bytes[..piece - usize::from(last)])?;
                }
                2 => {
                    let aligned = self.flaw == Flaw::RestartsPattern;
                    let shift = if aligned { 0 } else { usize::try_from(*completed % 8).unwrap_or(0) };
                    self.memory.write(to, &model::fill(operand, piece + shift)[shift..])?;
                }
                3 => {
                    let mut other = vec![0; piece];
                    self.memory.read(to, &mut other)?;
                    let blind = self.flaw == Flaw::ComparesPages;
                    if let Some(at) = model::first_difference(&bytes, &other) {
                        let at = at * usize::from(!blind);
                        *completed += at as u64;
                        return Err(Stop::Found(*completed));
                    }
                }
                _ => {
                    sum = model::crc32c(&bytes, sum);
                    *result = u64::from(if self.flaw == Flaw::WrongCrc { !sum } else { sum });
                }
            }
            *completed += piece as u64;
        }
        Ok(())
    }

    fn chase(&mut self, operation: &Operation, hops: &mut u64, result: &mut u64) -> Result<(), Stop> {
        *result = operation.source;
        while *result != 0 && *hops < operation.length {
            self.pause()?;
            let mut next = [0; 8];
            self.memory.read(*result, &mut next)?;
            match u64::from_le_bytes(next) {
                0 if self.flaw == Flaw::ChasesNull => *result = 0,
                0 => return Ok(()),
                next => *result = next,
            }
            *hops += 1;
        }
        Ok(())
    }
}
