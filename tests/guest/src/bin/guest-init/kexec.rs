//! Another kernel in place of the running one (kernel documentation, "The Linux/x86 Boot Protocol").
//!
//! The kernel's own loader, `kexec_file_load`, takes only kernels that can be moved; this one puts them where they want
//! to be.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::sys::{self, Segment};

/// Where the parameters go; the kernel's wish is far above.
const PARAMETERS: u64 = 0x80_0000;
/// Where the initial file system goes: in the upper half of a small machine.
const INITRD: u64 = 0x1000_0000;
const PAGE: usize = 4096;
/// Offsets in the boot parameters, which begin like the image.
const HEADER: usize = 0x1f1;
const LOADER: usize = 0x210;
const RAMDISK: usize = 0x218;
const COMMAND_LINE: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const HIGH_HALVES: std::ops::Range<usize> = 0xc0..0xcc;
/// The 64-bit entry point, from the start of the protected-mode part.
const ENTRY: u64 = 0x200;

/// Loads `/boot/bzImage` with `/boot/initrd` and a command line; [`sys::Ending::Kexec`] starts it.
pub(crate) fn load(command_line: &str) -> Result<()> {
    let read = |path| fs::read(path).with_context(|| format!("cannot read {path}"));
    let (image, initrd) = (read("/boot/bzImage")?, read("/boot/initrd")?);
    let own = read("/sys/kernel/boot_params/data")?;
    let kernel = Kernel::parse(&image)?;
    let parameters = parameters(&own, &image, &initrd, command_line)?;
    let segments = [
        Segment { bytes: &parameters, address: PARAMETERS, length: parameters.len().next_multiple_of(PAGE) },
        Segment { bytes: kernel.code, address: kernel.address, length: kernel.length },
        Segment { bytes: &initrd, address: INITRD, length: initrd.len().next_multiple_of(PAGE) },
    ];
    sys::kexec_load(PARAMETERS + PAGE as u64, &segments).context("kexec_load")
}

/// The protected-mode part of an image.
struct Kernel<'a> {
    code: &'a [u8],
    address: u64,
    length: usize,
}

impl<'a> Kernel<'a> {
    fn parse(image: &'a [u8]) -> Result<Self> {
        ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage");
        ensure!(image[0x236] & 1 != 0, "the kernel has no 64-bit entry point");
        let start = (usize::from(image[HEADER]).max(1) + 1) * 512;
        let code = image.get(start..).context("the image is cut off")?;
        let length = usize::try_from(word(image, 0x260))?.max(code.len()).next_multiple_of(PAGE);
        let address = u64::from(word(image, 0x258)) | u64::from(word(image, 0x25c)) << 32;
        Ok(Self { code, address, length })
    }
}

/// A page of boot parameters, a page that starts with the stub, the command line.
fn parameters(own: &[u8], image: &[u8], initrd: &[u8], command_line: &str) -> Result<Vec<u8>> {
    const LOADED_HIGH: u8 = 1;
    const UNKNOWN_LOADER: u8 = 0xff;
    ensure!(own.len() == PAGE, "the kernel shows {} bytes of its boot parameters", own.len());
    // Memory map and ACPI stay as the running kernel was given them; the header is the new image's.
    let mut page = own.to_vec();
    let end = 0x202 + usize::from(image[0x201]);
    page[HEADER..end].copy_from_slice(&image[HEADER..end]);
    page[LOADER] = UNKNOWN_LOADER;
    page[LOADER + 1] |= LOADED_HIGH;
    page[HIGH_HALVES].fill(0);
    page[SETUP_DATA..SETUP_DATA + 8].fill(0);
    let mut put = |at: usize, value: u64| -> Result<()> {
        page[at..at + 4].copy_from_slice(&u32::try_from(value)?.to_le_bytes());
        Ok(())
    };
    put(RAMDISK, INITRD)?;
    put(RAMDISK + 4, initrd.len() as u64)?;
    put(COMMAND_LINE, PARAMETERS + 2 * PAGE as u64)?;
    page.extend(stub_code(PARAMETERS, Kernel::parse(image)?.address + ENTRY));
    page.resize(2 * PAGE, 0);
    page.extend(command_line.as_bytes());
    page.push(0);
    Ok(page)
}

/// `mov rsi, parameters; mov rax, entry; jmp rax`. Pure.
fn stub_code(parameters: u64, entry: u64) -> Vec<u8> {
    let mut code = vec![0x48, 0xbe];
    code.extend(parameters.to_le_bytes());
    code.extend([0x48, 0xb8]);
    code.extend(entry.to_le_bytes());
    code.extend([0xff, 0xe0]);
    code
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_hold_the_new_image_and_the_old_memory_map() {
        let mut image = vec![0; 0x1000];
        image[HEADER] = 4;
        image[0x201] = 0x66;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x236] = 1;
        image[0x25b] = 1;
        image[0x261] = 0x40;
        let kernel = Kernel::parse(&image).unwrap();
        assert_eq!((kernel.code.len(), kernel.address, kernel.length), (0x600, 0x100_0000, 0x4000));
        let mut own = vec![0xaa; PAGE];
        own[0x2d0] = 0x77;
        let bytes = parameters(&own, &image, &[0; 100], "a b").unwrap();
        assert_eq!((bytes[0x2d0], bytes[LOADER], word(&bytes, RAMDISK + 4)), (0x77, 0xff, 100));
        assert_eq!((word(&bytes, 0xc0), word(&bytes, SETUP_DATA)), (0, 0));
        assert_eq!(bytes[PAGE..PAGE + 3], [0x48, 0xbe, 0]);
        assert_eq!(&bytes[2 * PAGE..], b"a b\0");
    }
}
