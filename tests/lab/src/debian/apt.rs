//! A private apt state: packages of other suites without touching the host's apt.
//!
//! Own sources list, lists and cache folders below the lab's cache. The mirror is the host's own,
//! as `apt-get indextargets` names it; the archive's signatures are checked as always.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::process::{find_program, output, run_logged};
use crate::ui::Progress;

/// Keys of the Debian archive, as the package debian-archive-keyring installs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The suite that has a kernel new enough, on every Debian release.
const KERNEL_SUITE: &str = "trixie-backports";

/// apt with its own lists and cache; needs no root.
#[derive(Debug)]
pub struct PrivateApt {
    folder: PathBuf,
    log: PathBuf,
    codename: String,
}

/// One entry of the host's package sources.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    address: String,
    suite: String,
    component: String,
}

impl PrivateApt {
    /// Sets the state up and fetches the package lists.
    ///
    /// # Errors
    /// The host has no apt, its sources name no Debian archive, or the mirror does not answer.
    pub fn open(cache: &Cache) -> Result<Self> {
        if find_program("apt-get").is_none() {
            bail!("this host has no apt-get; the lab takes packages from a Debian archive");
        }
        let folder = cache.folder("apt")?;
        for name in ["parts", "lists/partial", "cache/archives/partial"] {
            cache.folder(Path::new("apt").join(name))?;
        }
        let codename = codename(&fs::read_to_string("/etc/os-release").unwrap_or_default());
        let apt = Self {
            log: folder.join("log"),
            folder,
            codename: codename.context("/etc/os-release names no VERSION_CODENAME")?,
        };
        let _ = fs::remove_file(&apt.log);
        let mut progress = Progress::start("package lists");
        apt.refresh(&mut progress)?;
        progress.done("");
        Ok(apt)
    }

    /// First the host's sources tell the mirror, then the private list adds the other suites.
    fn refresh(&self, progress: &mut Progress) -> Result<()> {
        let mut update = Command::new("apt-get");
        update.args(self.options()).arg("update");
        // Another vendor's source may fail; what counts is whether Debian's archive answers.
        let updated = run_logged(&mut update, &self.log, progress, String::new);
        let targets = output(
            Command::new("apt-get")
                .args(self.options())
                .args(["indextargets", "--format"])
                .arg("$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"),
        )?;
        let list = render_sources(&parse_targets(&targets), &self.codename).map_err(|error| {
            let why = error.to_string();
            updated.err().map_or(error, |cause| cause.context(why))
        })?;
        fs::write(self.folder.join("sources.list"), list)?;
        let mut update = Command::new("apt-get");
        update.args(self.own_options()).arg("update");
        run_logged(&mut update, &self.log, progress, String::new)
    }

    /// Own lists and cache, the host's sources.
    fn options(&self) -> Vec<String> {
        let folder = self.folder.display();
        let lists = format!("Dir::State::Lists={folder}/lists");
        let cache = format!("Dir::Cache={folder}/cache");
        let settings = [
            lists.as_str(),
            cache.as_str(),
            "APT::Sandbox::User=",
            "Debug::NoLocking=1",
            "Acquire::Retries=3",
            "Acquire::Languages=none",
        ];
        settings.iter().flat_map(|setting| ["-o".to_owned(), (*setting).to_owned()]).collect()
    }

    /// Own lists, cache and sources.
    fn own_options(&self) -> Vec<String> {
        let folder = self.folder.display();
        let mut options = self.options();
        for setting in [
            format!("Dir::Etc::SourceList={folder}/sources.list"),
            format!("Dir::Etc::SourceParts={folder}/parts"),
        ] {
            options.extend(["-o".to_owned(), setting]);
        }
        options
    }

    /// The suite that holds newer versions for the host's own release.
    #[must_use]
    pub fn host_backports(&self) -> String {
        format!("{}-backports", self.codename)
    }

    /// Names of packages that match the pattern.
    ///
    /// # Errors
    /// apt fails.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let found = output(Command::new("apt-cache").args(self.own_options()).args([
            "search",
            "--names-only",
            pattern,
        ]))?;
        let first = |line: &str| line.split(' ').next().map(str::to_owned);
        Ok(found.lines().filter_map(first).collect())
    }

    /// Every version of a package, with the suite it comes from; newest first.
    ///
    /// # Errors
    /// apt fails.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let found = output(Command::new("apt-cache").args(self.own_options()).args(["madison", package]))?;
        let second = |line: &str| line.split('|').nth(1).map(|word| word.trim().to_owned());
        Ok(found.lines().filter_map(second).collect())
    }

    /// Fetches one package and unpacks it into `target`.
    ///
    /// # Errors
    /// The package does not exist in this version, or the mirror fails.
    pub fn unpack(&self, package: &str, version: &str, target: &Path) -> Result<()> {
        let mut progress = Progress::start(format!("fetching {package} {version}"));
        let downloads = self.folder.join("downloads");
        crate::cache::remove(&downloads)?;
        fs::create_dir_all(&downloads)?;
        let mut command = Command::new("apt-get");
        command
            .args(self.own_options())
            .arg("download")
            .arg(format!("{package}={version}"))
            .current_dir(&downloads);
        run_logged(&mut command, &self.log, &mut progress, String::new)?;
        unpack_all(&downloads, target, &self.log, &mut progress)?;
        crate::cache::remove(&downloads)?;
        progress.done("");
        Ok(())
    }

    /// Fetches a package of `suite` with everything it needs that this host lacks, and unpacks
    /// all into `target`. Nothing is installed.
    ///
    /// # Errors
    /// The package is unknown, or the mirror fails.
    pub fn unpack_with_needs(&self, package: &str, suite: &str, target: &Path) -> Result<()> {
        let mut progress = Progress::start(format!("fetching {package} from {suite}"));
        let archives = self.folder.join("cache/archives");
        crate::cache::remove(&archives)?;
        fs::create_dir_all(archives.join("partial"))?;
        let mut command = Command::new("apt-get");
        command
            .args(self.own_options())
            .args(["install", "--download-only", "--yes", "--reinstall"])
            .args(["--no-install-recommends", "--target-release", suite])
            .args(["-o", "APT::Keep-Downloaded-Packages=1", package]);
        run_logged(&mut command, &self.log, &mut progress, String::new)?;
        unpack_all(&archives, target, &self.log, &mut progress)?;
        crate::cache::remove(&archives)?;
        progress.done("");
        Ok(())
    }
}

fn unpack_all(folder: &Path, target: &Path, log: &Path, progress: &mut Progress) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            let mut command = Command::new("dpkg-deb");
            command.arg("-x").arg(&path).arg(target);
            run_logged(&mut command, log, progress, String::new)?;
            count += 1;
        }
    }
    if count == 0 {
        bail!("apt fetched no package into {}", folder.display());
    }
    Ok(())
}

fn codename(os_release: &str) -> Option<String> {
    let line = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(line.trim_matches('"').to_owned())
}

/// Debian's own entries; those of other vendors are left out.
fn parse_targets(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let ["Debian", address, suite, component] = fields.as_slice() else {
            continue;
        };
        let source = Source {
            address: (*address).to_owned(),
            suite: (*suite).to_owned(),
            component: (*component).to_owned(),
        };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    sources
}

/// The host's Debian sources plus the suites with newer packages from the same mirror.
fn render_sources(sources: &[Source], codename: &str) -> Result<String> {
    let main = sources
        .iter()
        .find(|source| source.suite == codename && source.component == "main")
        .with_context(|| {
            format!(
                "apt on this host has no Debian archive for {codename}; add one to its sources, \
                 then run `apt-get update`"
            )
        })?;
    let line = |address: &str, suite: &str, component: &str| {
        format!("deb [signed-by={KEYRING}] {address} {suite} {component}\n")
    };
    let mut list: String =
        sources.iter().map(|source| line(&source.address, &source.suite, &source.component)).collect();
    let mut extra = vec![format!("{codename}-backports"), KERNEL_SUITE.to_owned()];
    extra.dedup();
    for suite in extra {
        if !sources.iter().any(|source| source.suite == suite) {
            list.push_str(&line(&main.address, &suite, "main"));
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "Debian|http://mirror/debian/|bookworm|main\n\
        Debian|http://mirror/debian/|bookworm|main\n\
        Other|http://vendor/|bookworm|main\n\
        Debian|http://mirror/security/|bookworm-security|main\n";

    #[test]
    fn the_mirror_is_the_hosts_own() {
        let list = render_sources(&parse_targets(TARGETS), "bookworm").unwrap();
        assert!(!list.contains("vendor"));
        assert!(list.contains("http://mirror/security/ bookworm-security main"));
        assert!(list.contains("http://mirror/debian/ bookworm-backports main"));
        assert!(list.contains("http://mirror/debian/ trixie-backports main"));
        assert_eq!(list.lines().count(), 4);
    }

    #[test]
    fn a_host_without_debian_sources_is_told_so() {
        let error = render_sources(&[], "noble").unwrap_err().to_string();
        assert!(error.contains("noble"), "{error}");
    }
}
