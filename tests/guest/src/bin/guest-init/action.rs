//! What the kernel command line asks the init to do: `svmm.run=WORD,WORD,...`.

/// One thing to do, in the order of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Run a program with its arguments; its exit status becomes the machine's.
    Run(Vec<String>),
    /// Print the whole kernel log.
    KernelLog,
    /// Print which remapping unit has which device.
    Units,
    /// Power the machine off without a word on the exit port.
    PowerOff,
    /// Restart the machine.
    Restart,
    /// Make the kernel panic.
    Panic,
    /// Restart by triple fault.
    TripleFault,
    /// Pass this status to the exit port.
    Exit(u32),
    /// Wait until the machine is stopped from outside.
    Sleep,
    /// Start the kernel that the image holds, in place of the running one.
    Kexec,
    /// Go as far towards a hibernated machine as the kernel's test mode of this name does, and back; `disk`: hibernate.
    Hibernate(String),
    /// Boot a guest inside: options of svmm and things to do in it.
    Host(Vec<String>),
    /// The same, and kill its svmm so many milliseconds after its program began and asked for its first page.
    KillHost(u64, Vec<String>),
    /// The same, and take its first device away from it so many milliseconds after its program began.
    UnbindHost(u64, Vec<String>),
    /// Boot a guest inside by a user without rights, who may lock so many KiB of memory.
    UserHost(u64, Vec<String>),
    /// Wait until the SVM endpoint is gone: until it reads as ones.
    UntilGone,
    /// The command line holds something that is none of the above.
    Unknown(String),
}

/// The actions of a kernel command line: every `svmm.run=` in order. Pure.
pub(crate) fn parse(command_line: &str) -> Vec<Action> {
    command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("svmm.run=")).map(one).collect()
}

/// Parts of what an inner guest is to do.
fn parts(argument: &str) -> Vec<String> {
    argument.split(';').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn one(value: &str) -> Action {
    let Some(name) = value.strip_prefix('@') else {
        return Action::Run(value.split(',').map(str::to_owned).collect());
    };
    let (verb, argument) = name.split_once(':').unwrap_or((name, ""));
    match (verb, argument) {
        ("dmesg", "") => Action::KernelLog,
        ("units", "") => Action::Units,
        ("poweroff", "") => Action::PowerOff,
        ("reboot", "") => Action::Restart,
        ("panic", "") => Action::Panic,
        ("triple-fault", "") => Action::TripleFault,
        ("sleep", "") => Action::Sleep,
        ("kexec", "") => Action::Kexec,
        ("hibernate", mode @ ("devices" | "platform" | "processors" | "core" | "disk")) => {
            Action::Hibernate(mode.to_owned())
        }
        ("host", argument) => Action::Host(parts(argument)),
        ("kill-host" | "unbind-host" | "user-host", argument) => {
            let (number, rest) = argument.split_once(';').unwrap_or((argument, ""));
            let action = match verb {
                "kill-host" => Action::KillHost,
                "unbind-host" => Action::UnbindHost,
                _ => Action::UserHost,
            };
            let numbered = |number| action(number, parts(rest));
            number.parse().map_or_else(|_| Action::Unknown(value.to_owned()), numbered)
        }
        ("until-gone", "") => Action::UntilGone,
        ("exit", status) => status.parse().map_or_else(|_| Action::Unknown(value.to_owned()), Action::Exit),
        _ => Action::Unknown(value.to_owned()),
    }
}

/// The command line of the kernel that follows this one: what it is to run stands behind `svmm.next=`. Pure.
pub(crate) fn next_command_line(command_line: &str) -> String {
    let words = command_line.split_ascii_whitespace().filter(|word| !word.starts_with("svmm.run="));
    let words = words.map(|word| match word.strip_prefix("svmm.next=") {
        Some(action) => format!("svmm.run={action}"),
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let strings = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let run = |words: &[&str]| Action::Run(strings(words));
        let rows: &[(&str, &str, Vec<Action>)] = &[
            ("nothing asked", "console=ttyS0 quiet", vec![]),
            ("a program", "a svmm.run=/bin/x b", vec![run(&["/bin/x"])]),
            ("arguments", "svmm.run=/bin/x,--filter,a=b\n", vec![run(&["/bin/x", "--filter", "a=b"])]),
            ("order is kept", "svmm.run=/a svmm.run=@dmesg", vec![run(&["/a"]), Action::KernelLog]),
            ("units", "svmm.run=@units", vec![Action::Units]),
            ("power off", "svmm.run=@poweroff", vec![Action::PowerOff]),
            ("restart", "svmm.run=@reboot", vec![Action::Restart]),
            ("panic", "svmm.run=@panic", vec![Action::Panic]),
            ("triple fault", "svmm.run=@triple-fault", vec![Action::TripleFault]),
            ("sleep", "svmm.run=@sleep", vec![Action::Sleep]),
            ("a status", "svmm.run=@exit:42", vec![Action::Exit(42)]),
            ("another kernel", "svmm.run=@kexec", vec![Action::Kexec]),
            ("hibernation", "svmm.run=@hibernate:core", vec![Action::Hibernate("core".into())]),
            ("no test mode", "svmm.run=@hibernate:x", vec![Action::Unknown("@hibernate:x".into())]),
            ("a host", "svmm.run=@host:--a=b,c;/x,y;", vec![Action::Host(strings(&["--a=b,c", "/x,y"]))]),
            ("a host killed", "svmm.run=@kill-host:50;/x", vec![Action::KillHost(50, strings(&["/x"]))]),
            (
                "unbound",
                "svmm.run=@unbind-host:9;--vfio=x",
                vec![Action::UnbindHost(9, strings(&["--vfio=x"]))],
            ),
            ("a user's", "svmm.run=@user-host:64;/x", vec![Action::UserHost(64, strings(&["/x"]))]),
            ("gone", "svmm.run=@until-gone", vec![Action::UntilGone]),
            ("killed when?", "svmm.run=@kill-host:/x", vec![Action::Unknown("@kill-host:/x".into())]),
            ("no status", "svmm.run=@exit:", vec![Action::Unknown("@exit:".into())]),
            ("a strange verb", "svmm.run=@dance", vec![Action::Unknown("@dance".into())]),
            ("an argument too many", "svmm.run=@panic:now", vec![Action::Unknown("@panic:now".into())]),
        ];
        for (name, line, expected) in rows {
            assert_eq!(&parse(line), expected, "{name}");
        }
    }

    #[test]
    fn the_next_kernel_runs_what_is_next() {
        let line = "console=ttyS0 svmm.run=/a svmm.run=@kexec svmm.next=/b,c svmm.next=@dmesg quiet\n";
        assert_eq!(next_command_line(line), "console=ttyS0 svmm.run=/b,c svmm.run=@dmesg quiet");
    }
}
