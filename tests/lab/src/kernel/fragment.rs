//! The options that this project asks of the kernel, and the check that it got them.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

/// The text of `resources/kernel/config`.
#[derive(Clone, Debug)]
pub struct Fragment {
    text: String,
}

impl Fragment {
    /// Reads the fragment of this source tree.
    ///
    /// # Errors
    /// The file is missing.
    pub fn load() -> Result<Self> {
        let path = crate::programs::workspace().join("resources/kernel/config");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { text })
    }

    /// The fragment as written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Fails with a list of every requested option that `config` does not have.
    ///
    /// # Errors
    /// At least one option is missing or has another value.
    pub fn check(&self, config: &str) -> Result<()> {
        let built: HashMap<&str, &str> = config.lines().filter_map(option).collect();
        let mut complaints = Vec::new();
        for (name, wanted) in self.text.lines().filter_map(option) {
            let found = built.get(name).copied().unwrap_or("n");
            if found != wanted {
                complaints.push(format!("    {name}: wanted {wanted}, got {found}"));
            }
        }
        if !complaints.is_empty() {
            bail!(
                "the kernel's configuration dropped options of resources/kernel/config \
                 (a dependency is missing, or the option was renamed):\n{}",
                complaints.join("\n")
            );
        }
        Ok(())
    }
}

/// `CONFIG_A=y` as (A, y), `# CONFIG_A is not set` as (A, n).
fn option(line: &str) -> Option<(&str, &str)> {
    if let Some(rest) = line.strip_prefix("# CONFIG_") {
        return Some((rest.strip_suffix(" is not set")?, "n"));
    }
    line.strip_prefix("CONFIG_")?.split_once('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lost_option_is_named() {
        let fragment = Fragment {
            text: "# a remark\nCONFIG_A=y\nCONFIG_B=64\n# CONFIG_C is not set\nCONFIG_D=y\n".into(),
        };
        let error = fragment.check("CONFIG_A=y\nCONFIG_B=8\nCONFIG_C=y\n").unwrap_err().to_string();
        for complaint in ["B: wanted 64, got 8", "C: wanted n, got y", "D: wanted y"] {
            assert!(error.contains(complaint), "{error}");
        }
        assert!(!error.contains("A: wanted"));
        assert!(fragment.check("CONFIG_A=y\nCONFIG_B=64\nCONFIG_D=y\n").is_ok());
    }
}
