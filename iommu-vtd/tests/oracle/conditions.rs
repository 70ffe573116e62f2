//! The manual's table of conditions.

/// Names of the conditions, as (code, qualified, translation request, translated request).
/// 'U' UR, 'A' CA, '0' empty, 'R' empty and recorded.
pub(super) fn row(code: u8) -> (bool, char, char) {
    match code {
        0x01 => (false, 'U', 'U'),
        0x02 | 0x0d => (true, 'U', 'U'),
        0x03 | 0x0b | 0x0e => (true, 'A', 'U'),
        0x04 => (true, '0', 'U'),
        0x05 | 0x06 => (true, '0', '-'),
        0x07 | 0x0c => (true, 'A', '-'),
        0x08..=0x0a => (false, 'A', 'U'),
        0x29 => (false, '-', '-'),
        0x30 => (false, 'A', 'U'),
        0x31 | 0x33 => (false, 'U', 'U'),
        0x38 | 0x3a | 0x40 => (false, 'A', 'U'),
        0x39 => (false, 'U', 'U'),
        0x41 | 0x44 | 0x46 | 0x48 | 0x89 => (true, 'U', 'U'),
        0x42 | 0x43 | 0x87 => (true, 'A', 'U'),
        0x45 => (true, 'U', '-'),
        0x49 => (true, '-', 'U'),
        0x50 | 0x58 => (false, 'A', 'A'),
        0x51 | 0x59 => (true, '0', 'U'),
        0x52 | 0x5a | 0x5b => (true, 'A', 'A'),
        0x5c | 0x5d | 0x70..=0x77 | 0x79 | 0x80 | 0x81 | 0x84..=0x86 | 0x90 => (true, '0', '-'),
        0x78 | 0x7a..=0x7d => (true, 'A', '-'),
        0x83 => (true, '0', 'U'),
        0x91 => (true, 'R', '-'),
        _ => panic!("no row for {code:#x}"),
    }
}
