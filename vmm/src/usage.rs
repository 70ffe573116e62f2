//! What is wrong with a command line that clap does not take, as one line.

use std::ffi::OsString;

use clap::error::{ContextKind, ErrorKind};
use clap::{Command, Error};

use crate::config::Complaint;

/// The one line for an `error` of parsing `arguments`, the first of which is the program's name, for `command`. Not
/// for what clap only prints, such as its help. **Pure.**
pub(crate) fn complaint(error: &Error, command: &Command, arguments: &[OsString]) -> Complaint {
    let (thing, reason) = thing_and_reason(error);
    let see = format!("see `{} --help`", spoken_to(command, arguments));
    match advice(error, command) {
        Some(advice) => Complaint::new(thing, reason, format_args!("{advice}; {see}")),
        None => Complaint::new(thing, reason, see),
    }
}

/// A fact that clap gives with an error, unless it is empty.
fn fact(error: &Error, kind: ContextKind) -> Option<String> {
    error.get(kind).map(ToString::to_string).filter(|text| !text.is_empty())
}

/// What is wrong, and why.
fn thing_and_reason(error: &Error) -> (String, String) {
    let option = || fact(error, ContextKind::InvalidArg);
    let value = fact(error, ContextKind::InvalidValue);
    match (error.kind(), option()) {
        (ErrorKind::MissingRequiredArgument, Some(option)) => (option, "missing".into()),
        (ErrorKind::UnknownArgument, Some(option)) => (option, "unknown argument".into()),
        (ErrorKind::ArgumentConflict, Some(option)) => {
            let reason = match fact(error, ContextKind::PriorArg) {
                Some(prior) if prior != option => format!("does not go with {prior}"),
                _ => "given more than once".into(),
            };
            (option, reason)
        }
        (ErrorKind::InvalidSubcommand, _) => {
            (fact(error, ContextKind::InvalidSubcommand).unwrap_or_default(), "unknown command".into())
        }
        (ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, _) => {
            ("command".into(), "missing".into())
        }
        // Clap does not tell which; the log level may come from the environment.
        (ErrorKind::InvalidUtf8, _) => ("arguments or RUST_LOG".into(), "not UTF-8".into()),
        (_, Some(option)) => match value {
            Some(value) => (format!("{} {value}", name(&option)), value_reason(error)),
            None => (option, "needs a value".into()),
        },
        (kind, None) => ("arguments".into(), kind.to_string()),
    }
}

/// An option without the placeholder of its value: `--cpus` of `--cpus <N>`.
fn name(option: &str) -> &str {
    option.split([' ', '[']).next().unwrap_or(option)
}

/// What is wrong with a value.
fn value_reason(error: &Error) -> String {
    match (error.kind(), std::error::Error::source(error)) {
        (ErrorKind::ValueValidation, Some(source)) => source.to_string(),
        (ErrorKind::InvalidValue, _) => "unknown".into(),
        (kind, _) => kind.to_string(),
    }
}

/// What could have been meant.
fn advice(error: &Error, command: &Command) -> Option<String> {
    let perhaps = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand];
    if let Some(meant) = perhaps.into_iter().find_map(|kind| fact(error, kind)) {
        return Some(format!("perhaps {meant}"));
    }
    match error.kind() {
        // Whole sentences of clap's.
        ErrorKind::UnknownArgument => fact(error, ContextKind::Suggested),
        ErrorKind::InvalidValue => {
            fact(error, ContextKind::ValidValue).map(|known| format!("give one of {known}"))
        }
        ErrorKind::InvalidSubcommand
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let known: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
            Some(format!("give {}", known.join(" or ")))
        }
        _ => None,
    }
}

/// The command whose help answers: the program, or its command if the arguments name one.
fn spoken_to(command: &Command, arguments: &[OsString]) -> String {
    let named = arguments.iter().skip(1).find_map(|argument| {
        let mut known = command.get_subcommands();
        known.find(|known| argument == known.get_name())
    });
    match named {
        Some(named) => format!("{} {}", command.get_name(), named.get_name()),
        None => command.get_name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::{CommandFactory, Parser};
    use std::os::unix::ffi::OsStringExt;

    fn line_for(arguments: &[OsString]) -> String {
        let error = Cli::try_parse_from(arguments).unwrap_err();
        assert!(error.use_stderr(), "{arguments:?}");
        complaint(&error, &Cli::command(), arguments).to_string()
    }

    #[test]
    fn a_mistake_is_one_line_with_thing_reason_and_remedy() {
        for (arguments, expected) in [
            ("", "command: missing; give run or doctor; see `svmm --help`"),
            ("--log info", "command: missing; give run or doctor; see `svmm --help`"),
            ("walk", "walk: unknown command; give run or doctor; see `svmm --help`"),
            ("docter", "docter: unknown command; perhaps doctor; see `svmm --help`"),
            ("--kernel k run", "--kernel: unknown argument; 'run --kernel' exists; see `svmm run --help`"),
            ("run", "--kernel <PATH>: missing; see `svmm run --help`"),
            ("run --kernel", "--kernel <PATH>: needs a value; see `svmm run --help`"),
            ("run --kernel k --frobnicate", "--frobnicate: unknown argument; see `svmm run --help`"),
            ("run --kernel k --cpu 2", "--cpu: unknown argument; perhaps --cpus; see `svmm run --help`"),
            ("run --kernel k more", "more: unknown argument; see `svmm run --help`"),
            ("run --kernel k --cpus x", "--cpus x: invalid digit found in string; see `svmm run --help`"),
            ("run --kernel k --cpus -1", "--cpus -1: -1 is not in 0..=4294967295; see `svmm run --help`"),
            (
                "run --kernel k --memory-mib 99999999999999999999",
                "--memory-mib 99999999999999999999: number too large to fit in target type; see `svmm run --help`",
            ),
            (
                "run --kernel k --exit-port=no",
                "--exit-port no: unknown; give one of on, off; see `svmm run --help`",
            ),
            ("run --kernel k --kernel l", "--kernel <PATH>: given more than once; see `svmm run --help`"),
            ("doctor --probe tpm", "--probe tpm: unknown; give one of kvm; see `svmm doctor --help`"),
        ] {
            let mut line: Vec<OsString> = vec!["svmm".into()];
            line.extend(arguments.split_whitespace().map(OsString::from));
            assert_eq!(line_for(&line), expected, "{arguments}");
        }
    }

    #[test]
    fn what_is_no_text_or_holds_line_breaks_is_one_line_too() {
        let odd = OsString::from_vec(b"\xff".to_vec());
        let rows: [&[OsString]; 4] = [
            &["run".into(), "--log".into(), odd.clone()],
            &[odd],
            &["run".into(), "--cpus".into(), "1\n2\r\x1b[31m".into()],
            &["run".into(), "--a\nb".into()],
        ];
        for row in rows {
            let mut arguments: Vec<OsString> = vec!["svmm".into()];
            arguments.extend_from_slice(row);
            let line = line_for(&arguments);
            assert!(!line.contains(char::is_control) && line.contains("--help`"), "{line:?}");
        }
    }

    #[test]
    fn help_and_version_are_no_mistakes() {
        for arguments in ["--help", "-h", "--version", "help", "help run", "run --help", "doctor -h"] {
            let line = std::iter::once("svmm").chain(arguments.split(' '));
            assert!(!Cli::try_parse_from(line).unwrap_err().use_stderr(), "{arguments}");
        }
    }
}
