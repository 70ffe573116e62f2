//! Several processes, one after the other: uio knows one opener at a time.
//!
//! They are further runs of this program (`svm-selftest child ROLE`), which talk by lines. While
//! they run, the runner has the endpoint closed.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Case, Needs};
use crate::bench::{Bench, ExpectedFault, copy_all, faulted, fresh, requests, same, success};
use crate::endpoint::{Counters, Device, Endpoint, Operation, Queue, rest};
use crate::model::{self, Random};
use crate::sys::{Mapping, PAGE, share_file};

use Needs::{PageRequests, Translation};

pub(super) const CASES: &[Case] = &[
    Case::new("killed-with-work-in-flight", PageRequests, killed_with_work_in_flight).provoking(),
    Case::new("exit-with-work-queued", PageRequests, exit_with_work_queued).provoking(),
    Case::new("exec-with-work-queued", PageRequests, exec_with_work_queued).provoking(),
    Case::new("second-process-is-separate", Translation, second_process_is_separate),
    Case::new("many-processes", PageRequests, many_processes),
];

/// Where both processes of a case map something; far from where the kernel puts mappings.
const COMMON: u64 = 0x10_0000_0000;
/// Where only the first process maps something.
const SECRET: u64 = 0x11_0000_0000;
const PAGES: usize = 4;
/// Descriptors that keep a queue busy.
const QUEUED: usize = 16;
/// A descriptor that keeps a queue busy.
const BUSY_PAGES: usize = 16;

/// Runs one of the roles below; the other half of the cases in this file.
pub(crate) fn run_child(endpoint: &dyn Endpoint, role: &str) -> Result<()> {
    match role {
        "victim" => victim(endpoint),
        "leaver" => leaver(endpoint),
        "changer" => changer(endpoint),
        "successor" => say("changed 1"),
        "secretive" => secretive(endpoint),
        "stranger" => stranger(endpoint),
        "worker" => worker(endpoint),
        _ => bail!("unknown role {role}"),
    }
}

/// Fills every queue with work that needs page requests; returns what must stay mapped.
pub(super) fn keep_busy(device: &Device) -> Result<(Vec<Queue>, Vec<Mapping>)> {
    let (mut queues, mut memory) = (Vec::new(), Vec::new());
    for index in 0..device.queues() {
        let queue = device.queue(index)?;
        for _ in 0..device.depth().min(QUEUED) {
            let destination = fresh(BUSY_PAGES)?;
            let _ = queue.start(&Operation::fill(destination.address(), destination.len(), 0x77));
            memory.push(destination);
        }
        queues.push(queue);
    }
    Ok((queues, memory))
}

/// Waits for the device and counts.
pub(super) fn all_ended(endpoint: &dyn Endpoint, before: Counters, submitted: u64) -> Result<()> {
    let registers = endpoint.peek()?;
    rest(registers.as_ref())?;
    let ended = Counters::read(registers.as_ref()).completed - before.completed;
    let right = !endpoint.is_shared() || ended == submitted;
    ensure!(right, "{ended} of {submitted} descriptors ended");
    Ok(())
}

/// The dead process's open file is kept until the device rests. Without that, Linux (seen in 7.3.4)
/// ends the device's last use of page requests without a drain, since the address space has gone
/// already, and frees requests whose work is still queued: that is its bug, and it oopses.
fn killed_with_work_in_flight(bench: &mut Bench<'_>) -> Result<()> {
    for delay in [0, 3, 30] {
        let before = Counters::read(bench.endpoint.peek()?.as_ref());
        let mut victim = Peer::start(bench.endpoint, "victim")?;
        let submitted = victim.number("busy")?;
        let file = i32::try_from(victim.number("file")?)?;
        let bond = share_file(victim.child.id(), file).context("cannot share the victim's file")?;
        thread::sleep(Duration::from_millis(delay));
        victim.kill()?;
        all_ended(bench.endpoint, before, submitted).with_context(|| format!("killed after {delay} ms"))?;
        drop(bond);
        Peer::start(bench.endpoint, "worker")?.finish().context("a new process afterwards")?;
    }
    worker(bench.endpoint).context("the runner afterwards")
}

/// The same for a process that ends by itself, its queues at work.
fn exit_with_work_queued(bench: &mut Bench<'_>) -> Result<()> {
    ends_at_work(bench, "leaver", Peer::finish)
}

/// The same for a process that becomes another program: its memory goes, and its number stays.
fn exec_with_work_queued(bench: &mut Bench<'_>) -> Result<()> {
    ends_at_work(bench, "changer", |mut peer| {
        peer.number("changed")?;
        peer.finish()
    })
}

fn ends_at_work(bench: &Bench<'_>, role: &str, end: fn(Peer) -> Result<()>) -> Result<()> {
    for _ in 0..2 {
        let before = Counters::read(bench.endpoint.peek()?.as_ref());
        let mut peer = Peer::start(bench.endpoint, role)?;
        let submitted = peer.number("busy")?;
        let file = i32::try_from(peer.number("file")?)?;
        let bond = share_file(peer.child.id(), file).context("cannot share the process's file")?;
        peer.tell("go")?;
        end(peer)?;
        all_ended(bench.endpoint, before, submitted)?;
        drop(bond);
        worker(bench.endpoint).context("the runner afterwards")?;
    }
    Ok(())
}

/// Binds, fills all queues, and says so; what is returned is at work.
fn busy(endpoint: &dyn Endpoint) -> Result<(Device, Vec<Queue>, Vec<Mapping>)> {
    let device = Device::open(endpoint)?;
    let (queues, memory) = keep_busy(&device)?;
    say(&format!("busy {}", memory.len()))?;
    say(&format!("file {}", device.file()))?;
    Ok((device, queues, memory))
}

fn victim(endpoint: &dyn Endpoint) -> Result<()> {
    let _at_work = busy(endpoint)?;
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn leaver(endpoint: &dyn Endpoint) -> Result<()> {
    let _at_work = busy(endpoint)?;
    io::stdin().lock().read_line(&mut String::new())?;
    // Without dropping the queues, which would disable them.
    std::process::exit(0)
}

fn changer(endpoint: &dyn Endpoint) -> Result<()> {
    let _at_work = busy(endpoint)?;
    io::stdin().lock().read_line(&mut String::new())?;
    let mut successor = Command::new("/proc/self/exe");
    successor.args(["child", "successor"]).args(endpoint.arguments());
    Err(successor.exec()).context("cannot become another program")
}

/// The common case, from bind to unbind.
pub(super) fn worker(endpoint: &dyn Endpoint) -> Result<()> {
    let mut bench = Bench::new(endpoint, 9);
    let (source, bytes) = bench.resident(PAGES)?;
    let destination = fresh(PAGES)?;
    let lane = bench.lane()?;
    requests(lane.counted(&copy_all(&source, &destination), bytes.len())?, PAGES)?;
    same("destination", &destination.read_all(), &bytes)
}

/// Two processes with the same addresses and other bytes behind them.
fn second_process_is_separate(bench: &mut Bench<'_>) -> Result<()> {
    let mut first = Peer::start(bench.endpoint, "secretive")?;
    let pasid = first.number("pasid")?;
    let mut second = Peer::start(bench.endpoint, "stranger")?;
    let other = second.number("pasid")?;
    second.finish().context("the second process")?;
    ensure!(pasid != other, "two living processes have the same pasid {pasid}");
    first.tell("again")?;
    let again = first.number("pasid")?;
    first.finish().context("the first process")?;
    ensure!(again == pasid, "a process had pasid {pasid}, then {again}");
    bench.notes.push(format!("pasids {pasid} and {other}"));
    Ok(())
}

fn secretive(endpoint: &dyn Endpoint) -> Result<()> {
    let common = Mapping::anonymous_at(COMMON, PAGES * PAGE)?;
    let secret = Mapping::anonymous_at(SECRET, PAGES * PAGE)?;
    let bytes = Random::new(1).bytes(PAGES * PAGE);
    common.write(0, &bytes);
    secret.write(0, &bytes);
    for round in 0..2 {
        let mut bench = Bench::new(endpoint, 2);
        let (destination, _) = bench.resident(PAGES)?;
        let lane = bench.lane()?;
        requests(lane.counted(&copy_all(&secret, &destination), bytes.len())?, 0)?;
        same("what the device read", &destination.read_all(), &bytes)?;
        same("common address", &common.read_all(), &bytes)?;
        let pasid = lane.device.pasid();
        drop(lane);
        say(&format!("pasid {pasid}"))?;
        if round == 0 {
            io::stdin().lock().read_line(&mut String::new())?;
        }
    }
    Ok(())
}

fn stranger(endpoint: &dyn Endpoint) -> Result<()> {
    let common = Mapping::anonymous_at(COMMON, PAGES * PAGE)?;
    let own = Random::new(3).bytes(PAGES * PAGE);
    common.write(0, &own);
    let mut bench = Bench::new(endpoint, 4);
    let (destination, before) = bench.resident(PAGES)?;
    let lane = bench.lane()?;
    requests(lane.counted(&copy_all(&common, &destination), own.len())?, 0)?;
    same("common address", &destination.read_all(), &own)?;

    let spy = Operation::copy(SECRET, destination.address(), PAGE).without_block();
    faulted(&lane.queue.run(&spy)?, ExpectedFault { address: SECRET, write: false, completed: 0 })?;
    let vandal = Operation::fill(SECRET, PAGE, 0).without_block();
    faulted(&lane.queue.run(&vandal)?, ExpectedFault { address: SECRET, write: true, completed: 0 })?;
    same("destination", &destination.read_all(), &own)?;
    ensure!(before != own, "the bytes do not tell");
    success(&lane.queue.run(&Operation::fill(COMMON, PAGE, 0x2a))?, PAGE)?;
    same("own memory", &common.read(0..PAGE), &model::fill(0x2a, PAGE))?;
    say(&format!("pasid {}", lane.device.pasid()))
}

/// Bonds come and go.
fn many_processes(bench: &mut Bench<'_>) -> Result<()> {
    for index in 0..6 {
        let worker = Peer::start(bench.endpoint, "worker")?;
        worker.finish().with_context(|| format!("process {index}"))?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// Another run of this program.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(endpoint: &dyn Endpoint, role: &str) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["child", role]).args(endpoint.arguments());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().context("cannot start another process")?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, input, output })
    }

    /// The number in the next line, which starts with `word`.
    fn number(&mut self, word: &str) -> Result<u64> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let number = line.trim().strip_prefix(word).and_then(|rest| rest.trim().parse().ok());
        number.with_context(|| format!("the other process said {line:?}, not `{word} N`"))
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let mut rest = String::new();
        io::Read::read_to_string(&mut self.output, &mut rest)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}: {}", rest.trim());
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
