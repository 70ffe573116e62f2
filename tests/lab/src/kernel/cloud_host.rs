//! The kernel that hosts svmm in the cloud world: the guests' kernel with one line of its KVM changed.
//!
//! Since Linux 6.14 KVM gives a guest up when an instruction has to be emulated while an event is being delivered.
//! On AMD it looks at the type in EXITINTINFO but not at its valid bit, without which the manual (AMD64 APM 2,
//! 15.7.2) says the rest means nothing. QEMU leaves the type of an event that was delivered long ago there. So in
//! the cloud world a guest that touches a device's register just after a page fault would be given up. Hardware
//! clears the field, so only the cloud world needs this.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Name of the product.
pub const FILE: &str = "vmlinux-cloud-host";
/// The file in the kernel's tree.
const SOURCE: &str = "arch/x86/kvm/svm/svm.c";
const FOUND: &str = "(svm->vmcb->control.exit_int_info & SVM_EXITINTINFO_TYPE_MASK) &&";
const WANTED: &str = "(svm->vmcb->control.exit_int_info & SVM_EXITINTINFO_VALID) &&";

/// Changes the line. `Ok(false)`: it is not there, so this kernel needs no change.
///
/// # Errors
/// The file cannot be read or written.
pub fn edit(tree: &Path) -> Result<bool> {
    let path = tree.join(SOURCE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let edited = text.replacen(FOUND, WANTED, 1);
    if edited == text {
        return Ok(false);
    }
    fs::write(&path, edited).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_changed_once_and_only_where_it_stands() {
        let tree = std::env::temp_dir().join(format!("cloud-host-{}", std::process::id()));
        let file = tree.join(SOURCE);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("if ({FOUND} other)\n")).unwrap();
        assert!(edit(&tree).unwrap());
        assert!(!edit(&tree).unwrap(), "it is changed already");
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("if ({WANTED} other)\n"));
        fs::remove_dir_all(&tree).unwrap();
        assert!(edit(&tree).is_err(), "no such tree");
    }
}
