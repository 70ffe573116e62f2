//! A channel's registers, and what becomes of descriptors: values in, values out, no memory and no thread.
//!
//! A chain begins with a write of CHAINADDR, which sets the number of descriptors done to 0. A write of DMACOUNT
//! says how many are to be done in all, modulo 2^16; what is missing is done, each once. Work that was handed out
//! is void as soon as a chain begins or the channel is reset or aborted: what comes of it leaves no trace.

use super::spec::{
    CHANNEL_BYTES, ChannelControl, DESCRIPTOR_BYTES, REGISTERS, Register, TransferStatus, command,
};

/// A descriptor to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Where it is.
    pub address: u64,
    /// It is the first of its chain.
    pub first: bool,
    chain: u64,
}

/// A 64-bit word for the guest's memory: where, what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Address, a multiple of 8.
    pub address: u64,
    /// CHANSTS.
    pub value: u64,
}

/// What an error calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Bits that CHANERR got.
    pub errors: u32,
    /// To be written.
    pub completion: Option<Completion>,
    /// To be sent.
    pub interrupt: bool,
}

/// What a register write calls for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// There may be work.
    pub work: bool,
    /// Work was made void: none of its accesses may be under way when the write returns.
    pub drain: bool,
    /// To be sent.
    pub interrupt: bool,
}

/// The state of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    status: TransferStatus,
    /// Number of the chain, of all since power-on.
    chain: u64,
    control: u16,
    /// CHANCTRL bit 0.
    interrupt_sent: bool,
    /// One more is due.
    interrupt_due: bool,
    count: u16,
    done: u16,
    chain_address: u64,
    next: u64,
    completed: u64,
    current: u64,
    completion_address: u64,
    errors: u32,
    error_mask: u32,
    cache_hints: u32,
    /// Work of this chain is handed out.
    busy: bool,
    /// To be suspended when that is done.
    suspending: bool,
}

impl State {
    /// What it is at.
    #[must_use]
    pub fn status(&self) -> TransferStatus {
        self.status
    }

    fn pending(&self) -> u16 {
        self.count.wrapping_sub(self.done)
    }

    fn status_word(&self, completed: u64, status: TransferStatus) -> u64 {
        completed & !(DESCRIPTOR_BYTES as u64 - 1) | status as u64
    }

    /// The value of a register.
    #[must_use]
    pub fn read(&self, register: Register) -> u64 {
        match register {
            Register::Control => self.control().raw_value().into(),
            Register::Command => 0,
            Register::Count => self.count.into(),
            Register::Status => self.status_word(self.completed, self.status),
            Register::ChainAddress => self.chain_address,
            Register::CompletionAddress => self.completion_address,
            Register::Current => self.current,
            Register::Error => self.errors.into(),
            Register::ErrorMask => self.error_mask.into(),
            Register::CacheHints => self.cache_hints.into(),
        }
    }

    fn control(&self) -> ChannelControl {
        ChannelControl::new_with_raw_value(self.control).with_interrupt_sent(self.interrupt_sent)
    }

    /// All registers as they lie in memory.
    #[must_use]
    pub fn image(&self) -> [u8; CHANNEL_BYTES] {
        let mut image = [0; CHANNEL_BYTES];
        for (register, offset, bytes) in REGISTERS {
            image[offset..offset + bytes].copy_from_slice(&self.read(register).to_le_bytes()[..bytes]);
        }
        image
    }

    /// Writes a register. Bytes that are not written are 0 in `mask` and in `value`; the others 0xff in `mask`.
    pub fn write(&mut self, register: Register, value: u64, mask: u64) -> Effects {
        let over = self.read(register) & !mask | value;
        let [b0, b1, b2, b3, ..] = over.to_le_bytes();
        let half = u16::from_le_bytes([b0, b1]);
        let word = u32::from_le_bytes([b0, b1, b2, b3]);
        match register {
            Register::Control => {
                self.control = half & ChannelControl::WRITABLE;
                return self.rearm(value & 1 != 0);
            }
            Register::Command => return self.command(b0),
            Register::Count => return self.set_count(half),
            Register::ChainAddress => return self.begin(over),
            Register::CompletionAddress => self.completion_address = over & !7,
            Register::Error => self.errors &= !(self.errors & u32::try_from(value).unwrap_or(u32::MAX)),
            Register::ErrorMask => self.error_mask = word,
            Register::CacheHints => self.cache_hints = word,
            Register::Status | Register::Current => {}
        }
        Effects::default()
    }

    fn rearm(&mut self, rearmed: bool) -> Effects {
        let interrupt = rearmed && self.interrupt_due;
        if rearmed {
            self.interrupt_sent = interrupt;
            self.interrupt_due = false;
        }
        Effects { interrupt, ..Effects::default() }
    }

    fn begin(&mut self, address: u64) -> Effects {
        let void = self.void();
        self.chain_address = address;
        self.next = address;
        (self.count, self.done, self.completed) = (0, 0, 0);
        if self.status == TransferStatus::Active {
            self.status = TransferStatus::Done;
        }
        void
    }

    fn set_count(&mut self, count: u16) -> Effects {
        self.count = count;
        if self.pending() > 0 && self.errors == 0 {
            self.status = TransferStatus::Active;
        } else if self.pending() == 0 && self.status == TransferStatus::Active && !self.busy {
            self.status = TransferStatus::Done;
        }
        Effects { work: true, ..Effects::default() }
    }

    /// Disowns what is handed out.
    fn void(&mut self) -> Effects {
        self.chain = self.chain.wrapping_add(1);
        (self.busy, self.suspending) = (false, false);
        Effects { drain: true, ..Effects::default() }
    }

    fn command(&mut self, bits: u8) -> Effects {
        use TransferStatus::{Active, Done, Halted, Suspended};
        if bits & command::RESET != 0 {
            self.reset();
        } else if bits & command::ABORT != 0 {
            self.void();
            self.status = Halted;
        } else if bits & command::SUSPEND != 0 {
            match self.status {
                Active if self.busy => self.suspending = true,
                Active | Done => self.status = Suspended,
                Suspended | Halted => {}
            }
            return Effects::default();
        } else if bits & command::RESUME != 0 && self.status == Suspended {
            self.status = if self.pending() > 0 { Active } else { Done };
            return Effects { work: true, ..Effects::default() };
        } else {
            return Effects::default();
        }
        Effects { drain: true, ..Effects::default() }
    }

    /// Back to how it was at power-on; what is handed out is void.
    pub fn reset(&mut self) {
        *self = Self { chain: self.chain.wrapping_add(1), ..Self::default() };
    }

    /// Hands out the next descriptor, if one is to be done now.
    pub fn take(&mut self) -> Option<Work> {
        if self.status != TransferStatus::Active || self.busy {
            return None;
        }
        self.busy = true;
        self.current = self.next;
        Some(Work { address: self.next, first: self.done == 0 && self.completed == 0, chain: self.chain })
    }

    /// Whether work is still wanted.
    #[must_use]
    pub fn wants(&self, work: &Work) -> bool {
        self.busy && self.chain == work.chain
    }

    /// What is to be written for `work` before it is [done](Self::complete).
    #[must_use]
    pub fn completion(&self, work: &Work) -> Completion {
        let status = match (self.suspending, self.pending()) {
            (true, _) => TransferStatus::Suspended,
            (false, 1) => TransferStatus::Done,
            (false, _) => TransferStatus::Active,
        };
        Completion { address: self.completion_address, value: self.status_word(work.address, status) }
    }

    /// `work` is done, `next` is the address in its descriptor. Says whether an interrupt is to be sent.
    pub fn complete(&mut self, work: &Work, next: u64, interrupt: bool) -> bool {
        if !self.wants(work) {
            return false;
        }
        self.busy = false;
        self.done = self.done.wrapping_add(1);
        self.completed = work.address;
        self.next = next;
        self.status = match (std::mem::take(&mut self.suspending), self.pending()) {
            (true, _) => TransferStatus::Suspended,
            (false, 0) => TransferStatus::Done,
            (false, _) => TransferStatus::Active,
        };
        interrupt && self.raise()
    }

    /// `work` failed with these [`error`](super::spec::error) bits.
    pub fn fail(&mut self, work: &Work, errors: u32) -> Failure {
        if !self.wants(work) {
            return Failure { errors: 0, completion: None, interrupt: false };
        }
        (self.busy, self.suspending) = (false, false);
        self.status = TransferStatus::Halted;
        self.errors |= errors;
        let value = self.status_word(self.completed, self.status);
        let completion = Completion { address: self.completion_address, value };
        let control = self.control();
        Failure {
            errors,
            completion: control.error_completion().then_some(completion),
            interrupt: control.error_interrupt() && self.raise(),
        }
    }

    fn raise(&mut self) -> bool {
        let send = !self.interrupt_sent;
        self.interrupt_sent = true;
        self.interrupt_due |= !send;
        send
    }
}
