//! A unit with assigned functions against a guest that does as it likes and a host that refuses what it likes.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::io::Errno;
use vfio_bridge::testkit::{Call, Damage, Failure};
use vfio_bridge_fuzz::{CHUNKS, DRAIN, Hosted, PASIDS};

#[derive(Arbitrary, Debug)]
enum Step {
    /// A chunk of the tables becomes that of an image; `all`: everything does.
    Paint {
        image: u8,
        chunk: u16,
        all: bool,
    },
    Poke {
        at: u32,
        word: u64,
    },
    Submit(Descriptor),
    Request {
        device: bool,
        pasid: u8,
        group: u8,
        pages: u8,
    },
    Deliver,
    Answer(u8),
    Touch {
        device: bool,
        pasid: u8,
        page: u8,
    },
    Reset(bool),
    Translate(bool),
    Fail {
        call: u8,
        after: u8,
        times: u8,
        partial: u8,
        damage: u8,
    },
    Heal,
}

#[derive(Arbitrary, Debug)]
enum Descriptor {
    AllContexts,
    AllPasids,
    Contexts(u16),
    PasidsOf(u16),
    Pasid(u16, u8),
    Iotlb(u16, u8),
    Pages(u16, u8, u16, u8),
    Domain(u16),
    Everything,
    Drain,
    Response(u64, u64),
    Any(u64, u64),
}

impl Descriptor {
    fn words(&self) -> [u64; 2] {
        let domain = |domain: &u16| u64::from(domain % 10) << 16;
        let pasid = |pasid: &u8| u64::from(pasid % 5) << 32;
        match self {
            Self::AllContexts => [0x11, 0],
            Self::AllPasids => [0x37, 0],
            Self::Contexts(source) => [0x31 | u64::from(*source) << 32, 0],
            Self::PasidsOf(of) => [0x07 | domain(of), 0],
            Self::Pasid(of, number) => [0x17 | domain(of) | pasid(number), 0],
            Self::Iotlb(of, number) => [0x26 | domain(of) | pasid(number), 0],
            Self::Pages(of, number, page, mask) => {
                [0x36 | domain(of) | pasid(number), u64::from(*page) << 12 | u64::from(mask % 8)]
            }
            Self::Domain(of) => [0x22 | domain(of), 0],
            Self::Everything => [0x12, 0],
            Self::Drain => DRAIN,
            Self::Response(low, high) => [low & !0xfff | 9 | low & 0x10, *high],
            Self::Any(low, high) => [*low, *high],
        }
    }
}

const CALLS: [Call; 8] = [
    Call::Attach,
    Call::Detach,
    Call::HwptAlloc,
    Call::Invalidate,
    Call::FaultRead,
    Call::FaultWrite,
    Call::Destroy,
    Call::FaultQueueAlloc,
];
const ERRORS: [Errno; 4] = [Errno::IO, Errno::BUSY, Errno::NOMEM, Errno::INVAL];
const DAMAGES: [Damage; 3] = [Damage::None, Damage::Torn, Damage::Done];

fn take(machine: &mut Hosted, step: &Step) {
    let some = |pasid: &u8| Some(u32::from(*pasid) % PASIDS).filter(|pasid| *pasid != 0);
    match step {
        Step::Paint { image, all: true, .. } => machine.paint_all((*image).into()),
        Step::Paint { image, chunk, .. } => machine.paint((*image).into(), u64::from(*chunk) % CHUNKS),
        Step::Poke { at, word } => machine.poke((*at).into(), *word),
        Step::Submit(descriptor) => machine.submit(descriptor.words()),
        Step::Request { device, pasid, group, pages } => {
            let pages: Vec<_> = (0..=u64::from(pages % 3)).map(|page| page << 12).collect();
            machine.kernel.request_pages((*device).into(), some(pasid), (group % 4).into(), &pages);
        }
        Step::Deliver => drop(machine.host.deliver_page_requests(&machine.unit)),
        Step::Answer(code) => machine.answer((*code).into()),
        Step::Touch { device, pasid, page } => {
            machine.kernel.touch((*device).into(), some(pasid), u64::from(*page) << 12);
        }
        Step::Reset(device) => machine.reset((*device).into()),
        Step::Translate(on) => machine.translate(*on),
        Step::Fail { call, after, times, partial, damage } => machine.kernel.fail(Failure {
            after: (after % 4).into(),
            times: (times % 4).into(),
            partial: (partial % 3).into(),
            damage: DAMAGES[usize::from(*damage) % DAMAGES.len()],
            ..Failure::next(CALLS[usize::from(*call) % CALLS.len()], ERRORS[usize::from(*after / 4) % 4])
        }),
        Step::Heal => drop(machine.kernel.heal()),
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Hosted::new();
    for step in steps.iter().take(120) {
        take(&mut machine, step);
        let audit = machine.kernel.audit();
        let twice = audit.groups.iter().position(|answers| answers.len() > 1);
        assert_eq!(twice, None, "a group that was answered twice");
    }
    machine.finish();
});
