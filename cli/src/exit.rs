//! Exit codes, and how a failure is printed.

use std::process::ExitCode;

use node::{Error, Kind};

/// `--dry-run --exit-code` found changes.
pub const CHANGES: u8 = 3;

/// The exit code of a failure: 1 failed, 2 invalid input, 4 refused for safety.
pub fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => 1,
        Kind::Invalid => 2,
        Kind::Refused => 4,
    }
}

/// Prints a failure and answers its exit code.
pub fn report(error: &Error) -> ExitCode {
    anstream::eprintln!("{}", text(error));
    ExitCode::from(code(error.kind))
}

fn text(error: &Error) -> String {
    let style = anstyle::Style::new().bold().fg_color(Some(anstyle::AnsiColor::Red.into()));
    let mut text = format!("{style}error:{style:#} {}", error.chain());
    if let Some(hint) = &error.hint {
        text.push_str("\n\nhint: ");
        text.push_str(hint);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_why_and_what_to_do() {
        let e = Error::refused("the VIP is taken").because(std::io::Error::other("02:00 answers")).hint("choose another");
        assert_eq!(anstream::adapter::strip_str(&text(&e)).to_string(), "error: the VIP is taken: 02:00 answers\n\nhint: choose another");
        assert_eq!([Kind::Failed, Kind::Invalid, Kind::Refused].map(code), [1, 2, 4]);
    }
}
