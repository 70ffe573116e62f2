//! Many processes bound at the same time.
//!
//! `uio_pci_generic_sva` remembers one bond only, that of the last opening, and every closing ends that one. So
//! this process keeps every opened file, and who is to be unbound opens once more just before: its two openings
//! are what the next two closings end. No bond is ever ended twice.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest::cpus;

use super::{Case, Needs};
use crate::bench::{Bench, Skip, copy_all, fresh, same, success};
use crate::endpoint::{Endpoint, Queue, QueueSetup, Records, Session, reset};
use crate::sys::{Child, PAGE, share_file};
use crate::wait::{patience, wait_until};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("two-processes-many-queues", PageRequests, two_processes_many_queues),
    Case::new("processes-in-turn", PageRequests, processes_in_turn),
    Case::new("processes-at-once", PageRequests, processes_at_once),
    Case::new("pasid-exhaustion", Translation, pasid_exhaustion).provoking(),
];

const PAGES: usize = 2;
/// As many as a small machine has room for.
const CROWD: usize = 256;
/// Of which so many are bound however slow the machine is, and more only within this time.
const FEW: usize = 8;
const BUDGET: Duration = Duration::from_secs(8);

/// What a member is told; the answer is a zero byte if all is well.
const OPEN: u8 = b'o';
const WORK: u8 = b'w';
const LEAVE: u8 = b'l';

/// A process of its own, bound to the endpoint.
struct Member {
    child: Child,
    pasid: u32,
}

/// Processes bound at the same time.
pub(super) struct Crowd<'a> {
    endpoint: &'a dyn Endpoint,
    members: Vec<Member>,
    /// Every opened file; which of them is closed is all the same to the driver.
    bonds: Vec<File>,
    /// Whose bond the driver remembers.
    remembered: Option<u32>,
}

impl<'a> Crowd<'a> {
    pub(super) fn new(endpoint: &'a dyn Endpoint) -> Result<Self> {
        reset(endpoint.peek()?.as_ref())?;
        Ok(Self { endpoint, members: Vec::new(), bonds: Vec::new(), remembered: None })
    }

    /// Starts a process and binds it; `false`: the kernel refused the bond.
    pub(super) fn join(&mut self) -> Result<bool> {
        let endpoint = self.endpoint;
        let child = Child::start(|line| match live(endpoint, line) {
            Ok(()) => true,
            Err(error) => {
                println!("# a process of a crowd: {error:#}");
                false
            }
        })?;
        let mut member = Member { child, pasid: 0 };
        let Some(pasid) = self.open(&mut member)? else { return Ok(false) };
        member.pasid = pasid;
        self.members.push(member);
        Ok(true)
    }

    /// Starts a process and binds it as soon as there is a PASID for it: the address space of a process that has ended,
    /// and what belongs to it, goes a moment later.
    fn join_when_possible(&mut self) -> Result<()> {
        let mut outcome = Ok(false);
        let joined = wait_until(patience(), || {
            outcome = cpus::visit_all().map_err(Into::into).and_then(|()| self.join());
            !matches!(outcome, Ok(false))
        });
        outcome?;
        joined.with_context(|| format!("nobody can be bound beside {}", self.members.len()))
    }

    /// Has a member open the endpoint; its PASID, unless the kernel refused.
    fn open(&mut self, member: &mut Member) -> Result<Option<u32>> {
        let id = member.child.id();
        let line = member.child.line();
        line.write_all(&[OPEN])?;
        let (mut pasid, mut file) = ([0; 4], [0; 4]);
        line.read_exact(&mut pasid).context("a process of the crowd has ended")?;
        line.read_exact(&mut file)?;
        let (pasid, file) = (u32::from_ne_bytes(pasid), i32::from_ne_bytes(file));
        if file < 0 {
            return Ok(None);
        }
        self.bonds.push(share_file(id, file).context("cannot share a member's file")?);
        line.write_all(&[0])?;
        line.read_exact(&mut [0])?;
        self.remembered = Some(id);
        Ok(Some(pasid))
    }

    /// Has members work on queues of their own at the same time, as many each as said, and waits for all.
    fn work(&mut self, shares: &[(usize, Vec<u8>)]) -> Result<()> {
        for (member, queues) in shares {
            let line = self.members[*member].child.line();
            line.write_all(&[WORK, u8::try_from(queues.len())?])?;
            line.write_all(queues)?;
        }
        // Every answer is taken, whatever the first ones say.
        let mut outcome = Ok(());
        for (member, _) in shares {
            let pasid = self.members[*member].pasid;
            let answer = answer(self.members[*member].child.line());
            outcome = outcome.and(answer.with_context(|| format!("the process with PASID {pasid}")));
        }
        outcome
    }

    /// Unbinds the member that joined last, and waits for its end.
    pub(super) fn leave(&mut self) -> Result<()> {
        let Some(mut member) = self.members.pop() else { bail!("nobody is left") };
        if self.remembered != Some(member.child.id()) {
            ensure!(self.open(&mut member)?.is_some(), "a bound process cannot open again");
            drop(self.bonds.pop());
        }
        drop(self.bonds.pop());
        self.remembered = None;
        member.child.line().write_all(&[LEAVE])?;
        ensure!(member.child.wait()?, "a process ended badly");
        Ok(())
    }

    pub(super) fn pasids(&self) -> Vec<u32> {
        let mut pasids: Vec<u32> = self.members.iter().map(|member| member.pasid).collect();
        pasids.sort_unstable();
        pasids.dedup();
        pasids
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        while !self.members.is_empty() {
            if let Err(error) = self.leave() {
                println!("# {error:#}");
            }
        }
    }
}

fn answer(line: &mut impl Read) -> Result<()> {
    let mut byte = [1];
    line.read_exact(&mut byte).context("the process has ended")?;
    ensure!(byte == [0], "its work went wrong");
    Ok(())
}

/// The life of a member. Work that goes wrong does not end it: it has to be unbound first.
fn live(endpoint: &dyn Endpoint, line: &mut (impl Read + Write)) -> Result<()> {
    let endpoint = endpoint.again()?;
    let mut pasid = 0;
    loop {
        let mut order = [0];
        line.read_exact(&mut order)?;
        match order[0] {
            OPEN => {
                let session = endpoint.open();
                let file = session.as_ref().map_or(-1, |session| session.interrupts.as_raw_fd());
                pasid = session.as_ref().map_or(0, |session| session.pasid);
                line.write_all(&pasid.to_ne_bytes())?;
                line.write_all(&file.to_ne_bytes())?;
                let Ok(session) = session else { return Ok(()) };
                line.read_exact(&mut order)?;
                give_away(session);
                line.write_all(&[0])?;
            }
            WORK => {
                let mut count = [0];
                line.read_exact(&mut count)?;
                let mut queues = vec![0; count[0].into()];
                line.read_exact(&mut queues)?;
                let outcome = work(endpoint.as_ref(), pasid, &queues);
                if let Err(error) = &outcome {
                    println!("# PASID {pasid}: {error:#}");
                }
                line.write_all(&[u8::from(outcome.is_err())])?;
            }
            _ => return Ok(()),
        }
    }
}

/// The file is somebody else's now: what is left of it here ends, and the bond stays.
fn give_away(session: Session) {
    drop(session);
}

/// On every one of these queues the same, all at once: a copy of own bytes to where nothing is yet.
fn work(endpoint: &dyn Endpoint, pasid: u32, queues: &[u8]) -> Result<()> {
    let registers = endpoint.peek()?;
    let mut bench = Bench::new(endpoint, u64::from(pasid));
    let mut parts = Vec::new();
    for index in queues {
        let setup = QueueSetup { pasid: Some(pasid), vector: None };
        let queue = Queue::enable(registers.clone(), usize::from(*index), setup, Records::own()?);
        let (source, bytes) = bench.resident(PAGES)?;
        let destination = fresh(PAGES)?;
        let ticket = queue.start(&copy_all(&source, &destination));
        parts.push((queue, source, bytes, destination, ticket));
    }
    for (queue, _source, bytes, destination, ticket) in parts {
        let completion = queue.wait(ticket)?;
        success(&completion, PAGES * PAGE)?;
        crate::bench::requests(completion.page_requests.into(), PAGES)?;
        same("destination", &destination.read_all(), &bytes)?;
    }
    Ok(())
}

/// Two processes share the queues out among themselves and work at the same time.
fn two_processes_many_queues(bench: &mut Bench<'_>) -> Result<()> {
    const ROUNDS: usize = 4;
    let queues = queues(bench)?;
    let mut crowd = Crowd::new(bench.endpoint)?;
    for _ in 0..2 {
        ensure!(crowd.join()?, "the kernel binds no second process");
    }
    ensure!(crowd.pasids().len() == 2, "two processes have the PASID {:?}", crowd.pasids());
    for round in 0..ROUNDS {
        let (mut even, mut odd) = (Vec::new(), Vec::new());
        (0..queues).for_each(|queue| if queue % 2 == 0 { even.push(queue) } else { odd.push(queue) });
        let shares = if round % 2 == 0 { [(0, even), (1, odd)] } else { [(0, odd), (1, even)] };
        crowd.work(&shares).with_context(|| format!("round {round}"))?;
    }
    while !crowd.members.is_empty() {
        crowd.leave()?;
    }
    Ok(())
}

/// How many queues the endpoint has.
fn queues(bench: &Bench<'_>) -> Result<u8> {
    use crate::endpoint::global;
    let caps = bench.endpoint.peek()?.read32(global::CAPS);
    Ok(u8::try_from(caps & 0xff)?)
}

/// One process after the other binds, works and is unbound.
fn processes_in_turn(bench: &mut Bench<'_>) -> Result<()> {
    let started = Instant::now();
    let mut done = 0;
    while done < CROWD && (done < FEW || bench.thorough || started.elapsed() < BUDGET) {
        let mut crowd = Crowd::new(bench.endpoint)?;
        ensure!(crowd.join()?, "the kernel does not bind process {done}");
        crowd.work(&[(0, vec![0])]).with_context(|| format!("process {done}"))?;
        crowd.leave()?;
        done += 1;
    }
    bench.notes.push(format!("{done} processes, one after the other"));
    Ok(())
}

/// All are bound before the first is unbound, and each sees its own memory only.
fn processes_at_once(bench: &mut Bench<'_>) -> Result<()> {
    let started = Instant::now();
    let queues = queues(bench)?;
    let mut crowd = Crowd::new(bench.endpoint)?;
    while crowd.members.len() < CROWD
        && (crowd.members.len() < FEW || bench.thorough || started.elapsed() < BUDGET / 2)
    {
        let joined = crowd.join()?;
        ensure!(joined, "the kernel binds no process after {}", crowd.members.len());
    }
    let count = crowd.members.len();
    ensure!(crowd.pasids().len() == count, "{count} processes have {} PASIDs", crowd.pasids().len());
    let everybody: Vec<usize> = (0..count).collect();
    for some in everybody.chunks(usize::from(queues)) {
        let shares: Vec<_> =
            some.iter().zip(0..queues).map(|(member, queue)| (*member, vec![queue])).collect();
        crowd.work(&shares)?;
    }
    while !crowd.members.is_empty() {
        crowd.leave()?;
    }
    bench.notes.push(format!("{count} processes bound at once"));
    Ok(())
}

/// A process more than there are PASIDs is refused; when one has gone, its PASID serves another.
fn pasid_exhaustion(bench: &mut Bench<'_>) -> Result<()> {
    const PASID_CAPABILITY: u16 = 0x001b;
    let config = bench.endpoint.config()?;
    let at = config.extended_capability(PASID_CAPABILITY).context("no PASID capability")?;
    let width = u32::from(config.word(at + 4) >> 8 & 0x1f);
    let numbers = 1_usize << width;
    if !(2..=CROWD).contains(&numbers) {
        return Err(Skip("more PASIDs than processes; svmm --svm pasid-bits=5 makes them few").into());
    }
    // 0 is for requests without PASID, and this process has had one of the others.
    let possible = numbers - 2..numbers;
    let mut crowd = Crowd::new(bench.endpoint)?;
    while crowd.members.len() < possible.start {
        crowd.join_when_possible()?;
    }
    while crowd.members.len() < numbers && crowd.join()? {}
    let count = crowd.members.len();
    ensure!(possible.contains(&count), "{count} processes with {width} bits of PASID");
    ensure!(crowd.pasids().len() == count, "{count} processes have {} PASIDs", crowd.pasids().len());
    crowd.work(&[(0, vec![0]), (count - 1, vec![1])])?;

    crowd.leave()?;
    crowd.join_when_possible()?;
    crowd.work(&[(count - 1, vec![0])]).context("with a PASID that another process had")?;
    while !crowd.members.is_empty() {
        crowd.leave()?;
    }
    bench.notes.push(format!("{count} processes with {width} bits of PASID"));
    Ok(())
}
